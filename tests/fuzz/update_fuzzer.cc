// The update decoder against arbitrary bytes, and a round trip of arbitrary values.
//
// First byte: what to do. Decoding is tried on the bytes as they are and with repaired checksums,
// where it must agree with the reference decoder.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/base/status.h"
#include "common/codec/error_feedback.h"
#include "common/codec/update_codec.h"
#include "common/codec/update_header.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

constexpr uint64_t kParameters = 300;

void Decode(const std::string& bytes, const Digest& layout_hash, const SliceLayout& layout) {
  const auto decoded = DecodeUpdate(bytes, layout_hash, layout);
  if (decoded.ok()) FEDGE_CHECK(decoded->values.size() == decoded->header.num_nonzero);
}

// A whole file, e.g. one of tests/golden/update: the expectations come from its own header.
void DecodeFile(const std::string& bytes) {
  const auto header = ReadUpdateHeader(bytes);
  if (!header.ok() || header->num_parameters > 1000000) return;
  if (header->num_parameters < 2) return;
  Decode(bytes, header->layout_hash, testing::FlatLayout(header->num_parameters));
}

// Header fields and payload from the input, the rest right.
void DecodeResealed(absl::string_view input) {
  const UpdateHeader header = testing::SampleHeader();
  std::string bytes(kUpdateHeaderBytes, '\0');
  SealUpdate(header, &bytes);
  const size_t fields = std::min<size_t>(input.size(), 4);
  for (size_t i = 0; i < fields; ++i) {
    // encoding, value_bits, num_nonzero (two bytes)
    bytes[i < 2 ? 5 + i : 110 + i] = input[i];
  }
  bytes += std::string(input.substr(fields));
  testing::Reseal(&bytes);
  Decode(bytes, header.layout_hash, testing::FlatLayout(kParameters));
}

void RoundTrip(absl::string_view input) {
  if (input.size() < 2 + sizeof(float)) return;
  const int bits[] = {2, 4, 8, 3};
  EncodeOptions options;
  const uint8_t choice = static_cast<uint8_t>(input[0]);
  options.support = (choice & 1) != 0 ? UpdateSupport::kTopK : UpdateSupport::kDense;
  options.value_bits = bits[(choice >> 1) & 3];
  options.density = static_cast<double>(static_cast<uint8_t>(input[1])) / 250;
  std::vector<float> delta((input.size() - 2) / sizeof(float));
  std::memcpy(delta.data(), input.data() + 2, delta.size() * sizeof(float));
  std::vector<float> residual(delta.size());
  if (delta.size() < 2) return;
  const SliceLayout layout = testing::FlatLayout(delta.size());
  const UpdateHeader header = testing::SampleHeader();
  const auto bytes = EncodeUpdate(delta, layout, header, options, absl::MakeSpan(residual));
  if (!bytes.ok()) return;
  FEDGE_CHECK(bytes->size() <= EncodedSizeBound(delta.size(), options));
  const auto decoded = DecodeUpdate(*bytes, header.layout_hash, layout);
  FEDGE_CHECK(decoded.ok(), decoded.status().ToString());
  const std::vector<float> flat = testing::Flat(*decoded, layout);
  for (size_t i = 0; i < delta.size(); ++i) {
    FEDGE_CHECK(residual[i] == delta[i] - flat[i], i);
    FEDGE_CHECK(std::isfinite(residual[i]));
  }
}

void RestoreState(absl::string_view input) {
  ErrorFeedback feedback(Sha256Of("layout"), Sha256Of("base model"), 3);
  if (!feedback.Restore(input).ok()) return;
  FEDGE_CHECK(feedback.Serialize() == input);
}

}  // namespace
}  // namespace fedge

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  fedge::DecodeFile(std::string(input));
  if (size == 0) return 0;
  const absl::string_view rest = input.substr(1);
  switch (data[0] % 3) {
    case 0:
      fedge::DecodeResealed(rest);
      break;
    case 1:
      fedge::RoundTrip(rest);
      break;
    default:
      fedge::RestoreState(rest);
  }
  return 0;
}
