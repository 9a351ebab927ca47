// Writes GGUF v3 files: metadata in the order it was set, tensors aligned to 32 bytes. The whole
// file is built in memory; for tensors that come one after the other see gguf_file_writer.h.
#ifndef FEDGE_COMMON_FORMATS_GGUF_WRITER_H_
#define FEDGE_COMMON_FORMATS_GGUF_WRITER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/byte_io.h"
#include "common/base/env.h"
#include "common/formats/gguf.h"
#include "common/tensor/dtype.h"

namespace fedge {

// What a file's directory says about a tensor. dims in ggml order (dims[0] contiguous, a multiple
// of BlockElements(type)).
struct GgufTensorShape {
  std::string name;
  DType type = DType::kF32;
  std::vector<int64_t> dims;

  int64_t num_elements() const;
  int64_t bytes() const;  // CHECKs that rows are whole blocks
};

inline constexpr size_t kGgufWriterAlignment = 32;

// Setting a key or adding a tensor twice, or a name too long for a reader, is a CHECK.
class GgufWriter {
 public:
  void SetUint32(absl::string_view key, uint32_t value);
  void SetUint64(absl::string_view key, uint64_t value);
  void SetInt32(absl::string_view key, int32_t value);
  void SetFloat32(absl::string_view key, float value);
  void SetBool(absl::string_view key, bool value);
  void SetString(absl::string_view key, absl::string_view value);
  void SetStrings(absl::string_view key, absl::Span<const std::string> values);
  void SetFloat32s(absl::string_view key, absl::Span<const float> values);
  void SetInt32s(absl::string_view key, absl::Span<const int32_t> values);
  // Copies a value of another file as it is; "general.alignment" is left out, being the writer's.
  void CopyValue(absl::string_view key, const GgufValue& value);

  // dims in ggml order (dims[0] contiguous); data.size() must be the tensor's exact size (CHECK).
  void AddTensor(absl::string_view name, DType type, std::vector<int64_t> dims, std::string data);

  // Everything before the data of `tensors`: header, metadata and directory, padded; tensor data is
  // to follow in the same order, each padded to kGgufWriterAlignment. Not for a writer with tensors
  // of its own (CHECK).
  std::string SerializeHead(absl::Span<const GgufTensorShape> tensors) const;

  std::string Serialize() const;
  // Atomic: the whole file or nothing.
  absl::Status WriteFile(absl::string_view path, Env& env) const;

 private:
  std::string Head(absl::Span<const GgufTensorShape> tensors) const;
  void StartValue(absl::string_view key);
  template <typename T>
  void SetScalar(absl::string_view key, GgufType type, T value);
  template <typename T>
  void SetArray(absl::string_view key, GgufType type, absl::Span<const T> values);

  absl::flat_hash_set<std::string> keys_;
  ByteWriter values_;
  absl::flat_hash_set<std::string> tensor_names_;
  std::vector<GgufTensorShape> tensors_;
  std::vector<std::string> data_;  // of tensors_
};

}  // namespace fedge

#endif  // FEDGE_COMMON_FORMATS_GGUF_WRITER_H_
