// Any bytes are a safetensors file or an error; what is a file can be written again.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "common/base/status.h"
#include "common/formats/safetensors.h"

namespace fedge {
namespace {

void RunOne(absl::string_view bytes) {
  const auto file = SafetensorsFile::Parse(bytes, "fuzz.st");
  if (!file.ok()) {
    FEDGE_CHECK(absl::StrContains(file.status().message(), "fuzz.st"));
    return;
  }
  std::vector<SafetensorsEntry> entries;
  for (const SafetensorsTensor& tensor : (*file)->tensors()) {
    FEDGE_CHECK((*file)->Find(tensor.name) == &tensor);
    entries.push_back({tensor.name, tensor.shape, tensor.ToFloats()});
  }
  const std::string written = SerializeSafetensors(entries, (*file)->metadata());
  const auto copy = SafetensorsFile::Parse(written, "copy.st");
  FEDGE_CHECK(copy.ok(), copy.status().message());
  FEDGE_CHECK((*copy)->metadata() == (*file)->metadata());
  for (const SafetensorsEntry& entry : entries) {
    const SafetensorsTensor* const same = (*copy)->Find(entry.name);
    FEDGE_CHECK(same != nullptr && same->shape == entry.shape);
    // Bits, not values: NaN is allowed.
    FEDGE_CHECK(entry.values.empty() ||
                std::memcmp(same->data.data(), entry.values.data(), same->data.size()) == 0);
  }
}

}  // namespace
}  // namespace fedge

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fedge::RunOne(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
