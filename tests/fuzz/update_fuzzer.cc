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
#include "tests/testing/reference_update_decoder.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

constexpr uint64_t kParameters = 300;

void CompareDecoders(const std::string& bytes, const Digest& layout, uint64_t parameters) {
  const auto decoded = DecodeUpdate(bytes, layout, parameters);
  const auto reference = testing::ReferenceUpdateDecoder::Decode(bytes, layout.Raw(), parameters);
  FEDGE_CHECK(decoded.ok() == reference.has_value(), decoded.status().ToString());
  if (!decoded.ok()) return;
  FEDGE_CHECK(decoded->values.size() == parameters);
  FEDGE_CHECK(std::memcmp(decoded->values.data(), reference->values.data(),
                          parameters * sizeof(float)) == 0);
}

// A whole file, e.g. one of tests/golden/update: the expectations come from its own header.
void DecodeFile(const std::string& bytes) {
  const auto header = ReadUpdateHeader(bytes);
  if (!header.ok() || header->num_parameters > 1000000) return;
  CompareDecoders(bytes, header->layout_hash, header->num_parameters);
}

// Header fields and payload from the input, the rest right.
void DecodeResealed(absl::string_view input) {
  const UpdateHeader header = testing::SampleHeader(kParameters);
  std::string bytes(kUpdateHeaderBytes, '\0');
  SealUpdate(header, &bytes);
  const size_t fields = std::min<size_t>(input.size(), 4);
  for (size_t i = 0; i < fields; ++i) {
    // encoding, value_bits, num_nonzero (two bytes)
    bytes[i < 2 ? 5 + i : 102 + i] = input[i];
  }
  bytes += std::string(input.substr(fields));
  testing::Reseal(&bytes);
  CompareDecoders(bytes, header.layout_hash, kParameters);
}

void RoundTrip(absl::string_view input) {
  if (input.size() < 2 + sizeof(float)) return;
  const int bits[] = {2, 4, 8, 3};
  EncodeOptions options;
  const uint8_t choice = static_cast<uint8_t>(input[0]);
  options.encoding = (choice & 1) != 0 ? UpdateEncoding::kTopK : UpdateEncoding::kDenseFp16;
  options.value_bits = bits[(choice >> 1) & 3];
  options.density = static_cast<double>(static_cast<uint8_t>(input[1])) / 250;
  std::vector<float> delta((input.size() - 2) / sizeof(float));
  std::memcpy(delta.data(), input.data() + 2, delta.size() * sizeof(float));
  std::vector<float> residual(delta.size());
  const UpdateHeader header = testing::SampleHeader(delta.size());
  const auto bytes = EncodeUpdate(delta, header, options, absl::MakeSpan(residual));
  if (!bytes.ok()) return;
  FEDGE_CHECK(bytes->size() <= EncodedSizeBound(delta.size(), options));
  const auto decoded = DecodeUpdate(*bytes, header.layout_hash, delta.size());
  FEDGE_CHECK(decoded.ok(), decoded.status().ToString());
  for (size_t i = 0; i < delta.size(); ++i) {
    FEDGE_CHECK(residual[i] == delta[i] - decoded->values[i], i);
    FEDGE_CHECK(std::isfinite(residual[i]));
  }
  CompareDecoders(*bytes, header.layout_hash, delta.size());
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
