// GGUF v2/v3 container files (llama.cpp's docs/gguf.md): bounded reader over mapped bytes.
//
// Untrusted input: every length, count and product is checked against what is left of the file
// before it is used, so a malformed file yields an error that names file and place, never an abort
// and never memory beyond a small multiple of the file. The writer is in gguf_writer.h.
#ifndef FEDGE_COMMON_FORMATS_GGUF_H_
#define FEDGE_COMMON_FORMATS_GGUF_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/env.h"
#include "common/tensor/dtype.h"

namespace fedge {

enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

absl::string_view GgufTypeName(GgufType type);  // "uint32"; "unknown" for none of the above

// What a file may claim at most.
inline constexpr uint64_t kMaxGgufKeys = 65536;
inline constexpr uint64_t kMaxGgufTensors = 65536;
inline constexpr uint64_t kMaxGgufKeyBytes = 65535;
inline constexpr uint64_t kMaxGgufTensorNameBytes = 64;
inline constexpr uint32_t kMaxGgufDims = 4;
inline constexpr uint64_t kMaxGgufAlignment = uint64_t{1} << 20;

// One metadata value, still in the file's bytes. Scalars are decoded; strings are views; arrays
// keep a view of their (fully validated) elements.
class GgufValue {
 public:
  GgufType type() const { return type_; }
  GgufType element_type() const { return element_type_; }  // of an array
  uint64_t size() const { return count_; }                 // elements of an array, else 1
  // The value's bytes as the file has them: a scalar, a string's characters, an array's elements
  // (strings with their lengths).
  absl::string_view payload() const { return bytes_; }

  // InvalidArgument when the type does not fit (integers convert between widths if the value fits).
  absl::StatusOr<uint64_t> AsUint() const;
  absl::StatusOr<int64_t> AsInt() const;
  absl::StatusOr<double> AsFloat() const;  // float32, float64 or any integer
  absl::StatusOr<bool> AsBool() const;
  absl::StatusOr<absl::string_view> AsString() const;
  absl::StatusOr<std::vector<absl::string_view>> AsStrings() const;  // array of strings
  absl::StatusOr<std::vector<int64_t>> AsInts() const;  // array of any integer type or bool
  absl::StatusOr<std::vector<float>> AsFloats() const;  // array of float32/64

 private:
  friend class GgufParser;
  GgufType type_ = GgufType::kUint8;
  GgufType element_type_ = GgufType::kUint8;
  uint64_t count_ = 1;
  absl::string_view bytes_;
};

// An entry of the tensor directory. `dims` are in ggml order: dims[0] is contiguous (columns).
struct GgufTensor {
  std::string name;
  DType type = DType::kF32;
  std::vector<int64_t> dims;  // 1 to 4, each >= 1
  absl::string_view data;     // exactly the tensor's bytes

  int64_t num_elements() const;
  // [dims[1], dims[0]]; a vector is one row. InvalidArgument for 3-D and more (trailing dimensions
  // of 1 do not count).
  absl::StatusOr<WeightMatrix> AsMatrix() const;
};

// An open file. Immutable, thread-safe, keeps the mapping alive.
class GgufFile {
 public:
  // Errors name `path`. NotFound, InvalidArgument (malformed: with the byte offset or key or
  // tensor), Unimplemented (version, byte order, tensor type).
  static absl::StatusOr<std::shared_ptr<const GgufFile>> Open(absl::string_view path, Env& env);
  // The same over bytes the caller keeps alive; `name` stands for the path in messages.
  static absl::StatusOr<std::shared_ptr<const GgufFile>> Parse(absl::string_view bytes,
                                                               absl::string_view name);

  const std::string& path() const { return path_; }
  absl::string_view bytes() const { return bytes_; }  // the whole file
  uint32_t version() const { return version_; }

  const std::vector<std::string>& keys() const { return keys_; }  // in file order
  const GgufValue* Find(absl::string_view key) const;             // null when absent
  // The value of `key`; NotFound names file and key; InvalidArgument for a wrong type.
  absl::StatusOr<uint64_t> GetUint(absl::string_view key) const;
  absl::StatusOr<double> GetFloat(absl::string_view key) const;
  absl::StatusOr<absl::string_view> GetString(absl::string_view key) const;
  // The same with a default for an absent key; a wrong type is still an error.
  absl::StatusOr<uint64_t> GetUintOr(absl::string_view key, uint64_t fallback) const;
  absl::StatusOr<double> GetFloatOr(absl::string_view key, double fallback) const;
  absl::StatusOr<bool> GetBoolOr(absl::string_view key, bool fallback) const;
  absl::StatusOr<absl::string_view> GetStringOr(absl::string_view key,
                                                absl::string_view fallback) const;

  // Says that `data`, a part of bytes(), is not needed for now: a mapped file's pages leave memory.
  void Release(absl::string_view data) const {
    if (mapping_ != nullptr) mapping_->Release(data);
  }

  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* FindTensor(absl::string_view name) const;  // null when absent

 private:
  friend class GgufParser;
  GgufFile() = default;
  absl::StatusOr<const GgufValue*> Require(absl::string_view key) const;
  template <typename T>
  absl::StatusOr<T> Named(absl::string_view key, absl::StatusOr<T> converted) const;

  std::unique_ptr<MappedFile> mapping_;
  std::string path_;
  absl::string_view bytes_;
  uint32_t version_ = 0;
  std::vector<std::string> keys_;
  absl::flat_hash_map<std::string, GgufValue> values_;
  std::vector<GgufTensor> tensors_;
  absl::flat_hash_map<std::string, size_t> tensor_index_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_FORMATS_GGUF_H_
