// Any bytes are a GGUF file or an error; what is a file can be read whole and written again.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "common/base/status.h"
#include "common/formats/gguf.h"
#include "common/formats/gguf_writer.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

void ReadEveryWay(const GgufValue& value) {
  value.AsUint().IgnoreError();
  value.AsInt().IgnoreError();
  value.AsFloat().IgnoreError();
  value.AsBool().IgnoreError();
  value.AsString().IgnoreError();
  value.AsStrings().IgnoreError();
  value.AsInts().IgnoreError();
  value.AsFloats().IgnoreError();
}

void RunOne(absl::string_view bytes) {
  const auto file = GgufFile::Parse(bytes, "fuzz.gguf");
  if (!file.ok()) {
    FEDGE_CHECK(absl::StrContains(file.status().message(), "fuzz.gguf"));
    return;
  }
  GgufWriter writer;
  for (const std::string& key : (*file)->keys()) {
    ReadEveryWay(*(*file)->Find(key));
    writer.CopyValue(key, *(*file)->Find(key));
  }
  for (const GgufTensor& tensor : (*file)->tensors()) {
    std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
    Dequantize(tensor.type, reinterpret_cast<const uint8_t*>(tensor.data.data()),
               tensor.num_elements(), values.data());
    writer.AddTensor(tensor.name, tensor.type, tensor.dims, std::string(tensor.data));
  }
  const std::string written = writer.Serialize();
  const auto copy = GgufFile::Parse(written, "copy.gguf");
  FEDGE_CHECK(copy.ok(), copy.status().message());
  for (const GgufTensor& tensor : (*file)->tensors()) {
    const GgufTensor* const same = (*copy)->FindTensor(tensor.name);
    FEDGE_CHECK(same != nullptr && same->data == tensor.data && same->dims == tensor.dims);
  }
}

}  // namespace
}  // namespace fedge

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fedge::RunOne(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
