// Bounded little-endian reading and writing of bytes that come from or go to the outside.
#ifndef FEDGE_COMMON_BASE_BYTE_IO_H_
#define FEDGE_COMMON_BASE_BYTE_IO_H_

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "absl/strings/string_view.h"

namespace fedge {

static_assert(std::endian::native == std::endian::little,
              "Fedge's formats are little-endian and are read in place");

// A cursor over foreign bytes. Every read is checked against what is left; after the first failed
// read all reads fail, so a caller may read a whole header and check ok() once.
class ByteReader {
 public:
  explicit ByteReader(absl::string_view bytes) : bytes_(bytes) {}

  template <typename T>
  requires std::is_arithmetic_v<T> T Read() {
    T value{};
    if (sizeof(T) > remaining()) {
      ok_ = false;
      return value;
    }
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  // The next `size` bytes in place; empty and !ok() when fewer are left.
  absl::string_view ReadBytes(uint64_t size) {
    if (!ok_ || size > remaining()) {
      ok_ = false;
      return {};
    }
    const absl::string_view result = bytes_.substr(position_, static_cast<size_t>(size));
    position_ += static_cast<size_t>(size);
    return result;
  }

  bool ok() const { return ok_; }
  size_t position() const { return position_; }
  size_t remaining() const { return ok_ ? bytes_.size() - position_ : 0; }

 private:
  absl::string_view bytes_;
  size_t position_ = 0;
  bool ok_ = true;
};

// Appends little-endian values to a string.
class ByteWriter {
 public:
  template <typename T>
  requires std::is_arithmetic_v<T>
  void Write(T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    bytes_.append(raw, sizeof(T));
  }
  void WriteBytes(absl::string_view bytes) { bytes_.append(bytes.data(), bytes.size()); }
  void PadTo(size_t alignment) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment);
  }

  size_t size() const { return bytes_.size(); }
  std::string& bytes() { return bytes_; }
  const std::string& bytes() const { return bytes_; }
  std::string Take() && { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// a * b and a + b, or false when the result does not fit.
inline bool CheckedMul(uint64_t a, uint64_t b, uint64_t* out) {
  return !__builtin_mul_overflow(a, b, out);
}
inline bool CheckedAdd(uint64_t a, uint64_t b, uint64_t* out) {
  return !__builtin_add_overflow(a, b, out);
}

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_BYTE_IO_H_
