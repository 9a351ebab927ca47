// safetensors files: u64 header size, JSON header, raw little-endian data. Bounded reader, exact
// writer. Rules (from the format's README): header <= 100 MB and starts with '{', no duplicate
// names, offsets contiguous without holes or overlap and covering the data exactly, shape product *
// size = length.
#ifndef FEDGE_COMMON_FORMATS_SAFETENSORS_H_
#define FEDGE_COMMON_FORMATS_SAFETENSORS_H_

#include <cstdint>
#include <map>
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

// What a file may claim at most.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr size_t kMaxSafetensorsEntries = 65536;  // of tensors, and of metadata
inline constexpr size_t kMaxSafetensorsNameBytes = 1024;
inline constexpr size_t kMaxSafetensorsDims = 8;

// Row-major; shape as PyTorch prints it (slowest first).
struct SafetensorsTensor {
  std::string name;
  DType type = DType::kF32;  // F32, F16 or BF16
  std::vector<int64_t> shape;
  absl::string_view data;

  int64_t num_elements() const;
  std::vector<float> ToFloats() const;
};

// An open file. Immutable, thread-safe, keeps the mapping alive.
class SafetensorsFile {
 public:
  // Errors name `path`: NotFound, InvalidArgument (malformed), Unimplemented (a dtype other than
  // the three above).
  static absl::StatusOr<std::shared_ptr<const SafetensorsFile>> Open(absl::string_view path,
                                                                     Env& env);
  // The same over bytes the caller keeps alive; `name` stands for the path in messages.
  static absl::StatusOr<std::shared_ptr<const SafetensorsFile>> Parse(absl::string_view bytes,
                                                                      absl::string_view name);
  const std::string& path() const { return path_; }
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }  // by offset
  const SafetensorsTensor* Find(absl::string_view name) const;                // null when absent
  // Says that a tensor's data is not needed for now: a mapped file's pages leave memory.
  void Release(absl::string_view data) const {
    if (mapping_ != nullptr) mapping_->Release(data);
  }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  friend class SafetensorsParser;
  SafetensorsFile() = default;
  std::unique_ptr<MappedFile> mapping_;
  std::string path_;
  std::vector<SafetensorsTensor> tensors_;
  absl::flat_hash_map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

struct SafetensorsEntry {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;  // written as F32
};

// Tensors are written in the given order. A name given twice and values that do not fill the shape
// are a CHECK.
std::string SerializeSafetensors(absl::Span<const SafetensorsEntry> entries,
                                 const std::map<std::string, std::string>& metadata);

}  // namespace fedge

#endif  // FEDGE_COMMON_FORMATS_SAFETENSORS_H_
