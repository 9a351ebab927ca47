// The adapter contents' decoder against arbitrary bytes, as they are and with repaired checksums,
// and a round trip of arbitrary changes.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/base/status.h"
#include "common/codec/adapter_state.h"
#include "tests/testing/adapter_samples.h"

namespace fedge {
namespace {

const Digest kBase = Sha256Of("base model");

const LoraSpec& Spec() {
  static const LoraSpec* const spec = new LoraSpec(testing::SampleSpec(8, 2));  // 96 parameters
  return *spec;
}

void Decode(absl::string_view bytes) {
  std::vector<int32_t> units(static_cast<size_t>(Spec().num_parameters()));
  const auto header = AddAdapterDelta(Spec(), kBase, bytes, absl::MakeSpan(units));
  std::vector<float> values(units.size());
  const auto read = DecodeAdapterValues(Spec(), kBase, bytes, absl::MakeSpan(values));
  FEDGE_CHECK(!(header.ok() && read.ok()));
  if (!header.ok()) return;
  uint64_t count = 0;
  for (const int32_t value : units) {
    FEDGE_CHECK(value >= -kMaxAdapterUnits && value <= kMaxAdapterUnits);
    if (value != 0) ++count;
  }
  FEDGE_CHECK(count <= header->num_nonzero);
}

// A sound header before the input.
void DecodeResealed(absl::string_view input) {
  AdapterHeader header;
  header.base_model = kBase;
  const std::vector<int32_t> units(static_cast<size_t>(Spec().num_parameters()));
  std::string bytes = EncodeAdapterDelta(Spec(), header, units).substr(0, kAdapterHeaderBytes);
  if (!input.empty()) {
    bytes[96] = input[0];  // num_nonzero
    bytes += std::string(input.substr(1));
  }
  testing::ResealAdapter(&bytes);
  Decode(bytes);
}

void RoundTrip(absl::string_view input) {
  std::vector<int32_t> units(static_cast<size_t>(Spec().num_parameters()));
  for (size_t i = 0; i < units.size() && (i + 1) * sizeof(int32_t) <= input.size(); ++i) {
    std::memcpy(&units[i], input.data() + i * sizeof(int32_t), sizeof(int32_t));
    units[i] %= kMaxAdapterUnits + 1;
  }
  AdapterHeader header;
  header.base_model = kBase;
  const std::string bytes = EncodeAdapterDelta(Spec(), header, units);
  FEDGE_CHECK(bytes.size() <= AdapterContentBound(units.size()));
  std::vector<int32_t> decoded(units.size());
  const auto read = AddAdapterDelta(Spec(), kBase, bytes, absl::MakeSpan(decoded));
  FEDGE_CHECK(read.ok(), read.status().ToString());
  FEDGE_CHECK(decoded == units);
}

}  // namespace
}  // namespace fedge

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  fedge::Decode(input);
  (void)fedge::AdapterState::Parse(fedge::Spec(), fedge::kBase, input);
  if (size == 0) return 0;
  const absl::string_view rest = input.substr(1);
  if (data[0] % 2 == 0) {
    fedge::DecodeResealed(rest);
  } else {
    fedge::RoundTrip(rest);
  }
  return 0;
}
