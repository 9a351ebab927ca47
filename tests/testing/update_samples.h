// Updates for tests and benchmarks: seeded values that look like a LoRA delta, and hostile variants
// with correct checksums.
#ifndef FEDGE_TESTS_TESTING_UPDATE_SAMPLES_H_
#define FEDGE_TESTS_TESTING_UPDATE_SAMPLES_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "common/adapter/adapter_slice.h"
#include "common/base/digest.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/codec/update_codec.h"
#include "common/codec/update_header.h"

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

// The update as a flat adapter of changes.
inline std::vector<float> Flat(const DecodedUpdate& update, const SliceLayout& layout) {
  std::vector<float> values(static_cast<size_t>(layout.adapter_size()));
  AddUpdate(update, layout, 1, absl::MakeSpan(values));
  return values;
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
