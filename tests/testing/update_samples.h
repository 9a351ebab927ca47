// Updates for tests and benchmarks: seeded values that look like a LoRA delta, and hostile variants
// with correct checksums.
#ifndef FEDGE_TESTS_TESTING_UPDATE_SAMPLES_H_
#define FEDGE_TESTS_TESTING_UPDATE_SAMPLES_H_

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "common/adapter/adapter_slice.h"
#include "common/base/byte_io.h"
#include "common/base/digest.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/codec/update_codec.h"
#include "common/codec/update_header.h"
#include "tests/testing/reference_update_decoder.h"

namespace fedge::testing {

// Bell-shaped values (sums of uniform ones: the same bits with every libm) around 1e-3, with a
// scale of its own for each run of 4,096 coordinates, as modules of an adapter have.
inline std::vector<float> RandomDelta(size_t size, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(size);
  double scale = 0;
  for (size_t i = 0; i < size; ++i) {
    if (i % 4096 == 0) scale = 1e-3 * (0.25 + 1.5 * rng.Uniform());
    double sum = -2;
    for (int j = 0; j < 4; ++j) sum += rng.Uniform();
    values[i] = static_cast<float>(scale * sum);
  }
  return values;
}

// The same scale everywhere: the positions of the largest are independent.
inline std::vector<float> IidDelta(size_t size, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(size);
  for (float& value : values) {
    double sum = -4;
    for (int j = 0; j < 8; ++j) sum += rng.Uniform();
    value = static_cast<float>(1e-3 * sum);
  }
  return values;
}

// Each module, component and feature has a scale of its own, as in deltas of real training.
inline std::vector<float> StructuredDelta(const SliceLayout& layout, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values = IidDelta(static_cast<size_t>(layout.adapter_size()), seed + 1);
  const auto scale = [&](double spread) { return 1 + spread * (2 * rng.Uniform() - 1); };
  for (const SliceRun& run : layout.runs()) {
    const double module = scale(0.6) * scale(0.3);
    std::vector<double> features(static_cast<size_t>(run.row));
    for (double& feature : features) feature = scale(0.45);
    for (int64_t row = 0; row < run.size / run.row; ++row) {
      const double component = module * scale(0.45);
      for (int64_t i = 0; i < run.row; ++i) {
        float& value = values[static_cast<size_t>(run.offset + row * run.row + i)];
        value = static_cast<float>(value * component * features[static_cast<size_t>(i)]);
      }
    }
  }
  return values;
}

// An adapter of `size` (at least 2) parameters in two runs, the second of one coordinate.
inline LoraSpec FlatSpec(size_t size) {
  LoraModule module;
  module.tensor = "blk.0.attn_q.weight";
  module.in_features = static_cast<int64_t>(size) - 1;
  module.out_features = 1;
  module.rank = 1;
  const auto spec = LoraSpec::Create("llama", 1, {module});
  FEDGE_CHECK(spec.ok(), spec.status().message());
  return *spec;
}

inline SliceLayout FlatLayout(size_t size) { return SliceLayout::Whole(FlatSpec(size)); }

// All linear layers of Qwen2.5-0.5B: 8,798,208 parameters at rank 16, 2,199,552 at rank 4.
inline LoraSpec QwenHalfBillionSpec(int64_t rank) {
  struct Linear {
    const char* name;
    int64_t in, out;
  };
  std::vector<LoraModule> modules;
  for (int layer = 0; layer < 24; ++layer) {
    for (const Linear& linear :
         {Linear{"attn_q", 896, 896}, Linear{"attn_k", 896, 128}, Linear{"attn_v", 896, 128},
          Linear{"attn_output", 896, 896}, Linear{"ffn_gate", 896, 4864},
          Linear{"ffn_up", 896, 4864}, Linear{"ffn_down", 4864, 896}}) {
      LoraModule& module = modules.emplace_back();
      module.tensor = absl::StrCat("blk.", layer, ".", linear.name, ".weight");
      module.in_features = linear.in;
      module.out_features = linear.out;
      module.rank = rank;
    }
  }
  return LoraSpec::Create("qwen2", 2 * static_cast<float>(rank), modules).value();
}

// The update as a flat adapter of changes.
inline std::vector<float> Flat(const DecodedUpdate& update, const SliceLayout& layout) {
  std::vector<float> values(static_cast<size_t>(layout.adapter_size()));
  AddUpdate(update, layout, 1, absl::MakeSpan(values));
  return values;
}

// What the reference decoder makes of the bytes of a slice.
inline std::optional<std::vector<float>> ReferenceFlat(absl::string_view bytes,
                                                       const Digest& layout_hash,
                                                       const SliceLayout& layout) {
  ByteWriter slice;
  slice.Write<uint8_t>(static_cast<uint8_t>(layout.slice().factors));
  slice.Write<uint16_t>(static_cast<uint16_t>(layout.slice().first_component));
  slice.Write<uint16_t>(static_cast<uint16_t>(layout.slice().end_component));
  std::vector<uint64_t> runs;
  for (const SliceRun& run : layout.runs()) runs.push_back(static_cast<uint64_t>(run.size));
  const auto update = ReferenceUpdateDecoder::Decode(bytes, layout_hash.Raw(), slice.bytes(), runs);
  if (!update.has_value()) return std::nullopt;
  std::vector<float> sliced(static_cast<size_t>(layout.size()));
  for (size_t i = 0; i < update->values.size(); ++i) {
    sliced[update->positions[i]] = update->values[i];
  }
  std::vector<float> flat(static_cast<size_t>(layout.adapter_size()));
  layout.Scatter(sliced, absl::MakeSpan(flat));
  return flat;
}

inline UpdateHeader SampleHeader() {
  UpdateHeader header;
  header.round = 7;
  header.base_version = 6;
  header.num_examples = 120;
  header.layout_hash = Sha256Of("layout");
  header.base_model = Sha256Of("base model");
  return header;
}

// Recomputes length and checksums after a test changed the payload or a header field, so that the
// checks behind them are reached.
inline void Reseal(std::string* bytes) {
  if (bytes->size() < kUpdateHeaderBytes) return;
  const absl::string_view payload = absl::string_view(*bytes).substr(kUpdateHeaderBytes);
  const uint64_t length = payload.size();
  const uint32_t payload_crc = Crc32c(payload);
  std::memcpy(bytes->data() + 120, &length, sizeof(length));
  std::memcpy(bytes->data() + 116, &payload_crc, sizeof(payload_crc));
  const uint32_t header_crc = Crc32c(absl::string_view(*bytes).substr(0, 128));
  std::memcpy(bytes->data() + 128, &header_crc, sizeof(header_crc));
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_UPDATE_SAMPLES_H_
