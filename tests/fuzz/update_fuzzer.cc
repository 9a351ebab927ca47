// The update decoder and the error feedback's state against arbitrary bytes.
//
// Decoding is tried on the bytes as they are, on a payload under a right header, and on both with
// repaired checksums, where it must agree with the reference decoder.
#include <algorithm>
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

constexpr size_t kParameters = 300;

void CompareDecoders(const std::string& bytes, const Digest& hash, const SliceLayout& layout) {
  const auto decoded = DecodeUpdate(bytes, hash, layout);
  const auto reference = testing::ReferenceFlat(bytes, hash, layout);
  FEDGE_CHECK(decoded.ok() == reference.has_value(), decoded.status().ToString());
  if (!decoded.ok()) return;
  FEDGE_CHECK(decoded->values.size() == decoded->header.num_nonzero);
  FEDGE_CHECK(testing::Flat(*decoded, layout) == *reference);
}

// A whole file, e.g. one of tests/golden/update: the expectations come from its own header.
void DecodeFile(std::string bytes) {
  const auto header = ReadUpdateHeader(bytes);
  if (!header.ok() || header->num_parameters < 2 || header->num_parameters > 100000) return;
  if (header->slice != AdapterSlice()) return;
  const SliceLayout layout = testing::FlatLayout(header->num_parameters);
  CompareDecoders(bytes, header->layout_hash, layout);
  testing::Reseal(&bytes);
  CompareDecoders(bytes, header->layout_hash, layout);
}

// Support, width and count from the input, the rest of the header right.
void DecodeResealed(absl::string_view input) {
  const SliceLayout layout = testing::FlatLayout(kParameters);
  UpdateHeader header = testing::SampleHeader();
  header.slice = layout.slice();
  header.num_parameters = kParameters;
  std::string bytes(kUpdateHeaderBytes, '\0');
  SealUpdate(header, &bytes);
  const size_t fields = std::min<size_t>(input.size(), 4);
  for (size_t i = 0; i < fields; ++i) bytes[i < 2 ? 5 + i : 110 + i] = input[i];
  bytes.append(input.substr(fields).data(), input.size() - fields);
  testing::Reseal(&bytes);
  CompareDecoders(bytes, header.layout_hash, layout);
}

void RestoreState(absl::string_view input) {
  ErrorFeedback feedback(testing::FlatSpec(30), Sha256Of("base model"), 0);
  if (!feedback.Restore(input).ok()) return;
  const std::string state = feedback.Serialize();
  FEDGE_CHECK(feedback.Restore(state).ok() && feedback.Serialize() == state);
}

}  // namespace
}  // namespace fedge

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  fedge::DecodeFile(std::string(input));
  fedge::DecodeResealed(input);
  fedge::RestoreState(input);
  return 0;
}
