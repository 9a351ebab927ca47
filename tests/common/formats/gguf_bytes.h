// Builds GGUF bytes field by field, also wrong ones: every count, length and offset is what the
// test says, not what would be right.
#ifndef FEDGE_TESTS_COMMON_FORMATS_GGUF_BYTES_H_
#define FEDGE_TESTS_COMMON_FORMATS_GGUF_BYTES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/base/byte_io.h"

namespace fedge::testing {

class GgufBytes {
 public:
  GgufBytes& Header(uint64_t num_tensors, uint64_t num_keys, uint32_t version = 3,
                    absl::string_view magic = "GGUF") {
    out_.WriteBytes(magic);
    out_.Write(version);
    out_.Write(num_tensors);
    out_.Write(num_keys);
    return *this;
  }
  GgufBytes& Text(absl::string_view text) { return TextClaiming(text.size(), text); }
  GgufBytes& TextClaiming(uint64_t size, absl::string_view text) {
    out_.Write(size);
    out_.WriteBytes(text);
    return *this;
  }
  template <typename T>
  GgufBytes& Raw(T value) {
    out_.Write(value);
    return *this;
  }
  // Key and type id; the value follows.
  GgufBytes& Key(absl::string_view key, uint32_t type) { return Text(key).Raw(type); }
  GgufBytes& StringValue(absl::string_view key, absl::string_view value) {
    return Key(key, 8).Text(value);
  }
  GgufBytes& Uint32Value(absl::string_view key, uint32_t value) { return Key(key, 4).Raw(value); }
  // Key and array head; the elements follow.
  GgufBytes& Array(absl::string_view key, uint32_t element_type, uint64_t count) {
    return Key(key, 9).Raw(element_type).Raw(count);
  }
  GgufBytes& Tensor(absl::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                    uint64_t offset) {
    Text(name).Raw(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) Raw(dim);
    return Raw(type).Raw(offset);
  }
  GgufBytes& Pad(size_t alignment = 32) {
    out_.PadTo(alignment);
    return *this;
  }
  GgufBytes& Data(size_t size, char fill = 1) {
    out_.WriteBytes(std::string(size, fill));
    return *this;
  }
  std::string Build() const { return out_.bytes(); }

 private:
  ByteWriter out_;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_COMMON_FORMATS_GGUF_BYTES_H_
