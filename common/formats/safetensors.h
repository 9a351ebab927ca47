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

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/env.h"
#include "common/tensor/dtype.h"

namespace fedge {

// Row-major; shape as PyTorch prints it (slowest first).
struct SafetensorsTensor {
  std::string name;
  DType type = DType::kF32;  // F32, F16 or BF16
  std::vector<int64_t> shape;
  absl::string_view data;

  int64_t num_elements() const;
  std::vector<float> ToFloats() const;
};

class SafetensorsFile {
 public:
  static absl::StatusOr<std::shared_ptr<const SafetensorsFile>> Open(absl::string_view path,
                                                                     Env& env);
  static absl::StatusOr<std::shared_ptr<const SafetensorsFile>> Parse(absl::string_view bytes,
                                                                      absl::string_view name);
  const std::string& path() const { return path_; }
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }  // by offset
  const SafetensorsTensor* Find(absl::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  friend class SafetensorsParser;
  SafetensorsFile() = default;
  std::unique_ptr<MappedFile> mapping_;
  std::string path_;
  std::vector<SafetensorsTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

struct SafetensorsEntry {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;  // written as F32
};

// Tensors are written in the given order.
std::string SerializeSafetensors(absl::Span<const SafetensorsEntry> entries,
                                 const std::map<std::string, std::string>& metadata);

}  // namespace fedge

#endif  // FEDGE_COMMON_FORMATS_SAFETENSORS_H_
