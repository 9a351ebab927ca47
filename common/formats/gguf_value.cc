#include <cstring>
#include <limits>

#include "common/base/byte_io.h"
#include "common/base/status.h"
#include "common/formats/gguf.h"

namespace fedge {
namespace {

absl::Status WrongType(const GgufValue& value, absl::string_view wanted) {
  const bool is_array = value.type() == GgufType::kArray;
  return absl::InvalidArgumentError(
      absl::StrCat("is ", is_array ? "an array of " : "",
                   GgufTypeName(is_array ? value.element_type() : value.type()), ", not ", wanted));
}

// Reads one element as T. The parser has checked that the bytes are there.
template <typename T>
T Load(absl::string_view bytes, uint64_t index = 0) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

// Calls `use(T{})` with the C++ type of an integer type; false for any other type.
template <typename Use>
bool DispatchInteger(GgufType type, Use use) {
  switch (type) {
    case GgufType::kUint8:
      return use(uint8_t{}), true;
    case GgufType::kInt8:
      return use(int8_t{}), true;
    case GgufType::kUint16:
      return use(uint16_t{}), true;
    case GgufType::kInt16:
      return use(int16_t{}), true;
    case GgufType::kUint32:
      return use(uint32_t{}), true;
    case GgufType::kInt32:
      return use(int32_t{}), true;
    case GgufType::kUint64:
      return use(uint64_t{}), true;
    case GgufType::kInt64:
      return use(int64_t{}), true;
    default:
      return false;
  }
}

// The integer value as To, or an error when it does not fit.
template <typename To>
absl::StatusOr<To> IntegerAs(const GgufValue& value, absl::string_view bytes) {
  absl::StatusOr<To> result = To{0};
  const bool is_integer = DispatchInteger(value.type(), [&](auto zero) {
    const auto number = Load<decltype(zero)>(bytes);
    if (std::in_range<To>(number)) {
      result = static_cast<To>(number);
    } else {
      result = absl::InvalidArgumentError(absl::StrCat("is ", number, ", out of range"));
    }
  });
  if (!is_integer) return WrongType(value, "an integer");
  return result;
}

}  // namespace

absl::string_view GgufTypeName(GgufType type) {
  constexpr absl::string_view kNames[] = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                          "int32",  "float32", "bool",   "string", "array",
                                          "uint64", "int64",   "float64"};
  const uint32_t id = static_cast<uint32_t>(type);
  return id < std::size(kNames) ? kNames[id] : "unknown";
}

absl::StatusOr<uint64_t> GgufValue::AsUint() const { return IntegerAs<uint64_t>(*this, bytes_); }

absl::StatusOr<int64_t> GgufValue::AsInt() const { return IntegerAs<int64_t>(*this, bytes_); }

absl::StatusOr<double> GgufValue::AsFloat() const {
  if (type_ == GgufType::kFloat32) return static_cast<double>(Load<float>(bytes_));
  if (type_ == GgufType::kFloat64) return Load<double>(bytes_);
  double result = 0;
  const bool is_integer = DispatchInteger(
      type_, [&](auto zero) { result = static_cast<double>(Load<decltype(zero)>(bytes_)); });
  if (!is_integer) return WrongType(*this, "a number");
  return result;
}

absl::StatusOr<bool> GgufValue::AsBool() const {
  if (type_ != GgufType::kBool) return WrongType(*this, "a bool");
  return Load<uint8_t>(bytes_) != 0;
}

absl::StatusOr<absl::string_view> GgufValue::AsString() const {
  if (type_ != GgufType::kString) return WrongType(*this, "a string");
  return bytes_;
}

absl::StatusOr<std::vector<absl::string_view>> GgufValue::AsStrings() const {
  if (type_ != GgufType::kArray || element_type_ != GgufType::kString) {
    return WrongType(*this, "an array of strings");
  }
  std::vector<absl::string_view> strings;
  strings.reserve(count_);
  ByteReader reader(bytes_);
  for (uint64_t i = 0; i < count_; ++i) {
    strings.push_back(reader.ReadBytes(reader.Read<uint64_t>()));
  }
  FEDGE_CHECK(reader.ok());  // the parser has walked these bytes
  return strings;
}

absl::StatusOr<std::vector<int64_t>> GgufValue::AsInts() const {
  if (type_ != GgufType::kArray) return WrongType(*this, "an array of integers");
  std::vector<int64_t> integers;
  bool in_range = true;
  const auto append = [&](auto zero) {
    integers.reserve(count_);
    for (uint64_t i = 0; i < count_; ++i) {
      const auto number = Load<decltype(zero)>(bytes_, i);
      in_range = in_range && std::in_range<int64_t>(number);
      integers.push_back(static_cast<int64_t>(number));
    }
  };
  const GgufType stored = element_type_ == GgufType::kBool ? GgufType::kUint8 : element_type_;
  if (!DispatchInteger(stored, append)) return WrongType(*this, "an array of integers");
  if (!in_range) return absl::InvalidArgumentError("has an element out of range");
  return integers;
}

absl::StatusOr<std::vector<float>> GgufValue::AsFloats() const {
  const bool is_double = element_type_ == GgufType::kFloat64;
  if (type_ != GgufType::kArray || (!is_double && element_type_ != GgufType::kFloat32)) {
    return WrongType(*this, "an array of floats");
  }
  std::vector<float> floats(count_);
  for (uint64_t i = 0; i < count_; ++i) {
    floats[i] = is_double ? static_cast<float>(Load<double>(bytes_, i)) : Load<float>(bytes_, i);
  }
  return floats;
}

}  // namespace fedge
