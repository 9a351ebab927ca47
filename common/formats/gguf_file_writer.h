// Writes a GGUF file whose tensors come one after the other, so that memory holds no more than a
// stretch of one. The file appears under its name when it is whole.
//
//   GgufWriter metadata;  ... Set...
//   ASSIGN_OR_RETURN(auto file, GgufFileWriter::Create(path, metadata, shapes, env));
//   for each tensor, in the order of `shapes`: RETURN_IF_ERROR(file->Append(bytes)) ...
//   RETURN_IF_ERROR(file->Finish());
#ifndef FEDGE_COMMON_FORMATS_GGUF_FILE_WRITER_H_
#define FEDGE_COMMON_FORMATS_GGUF_FILE_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/env.h"
#include "common/formats/gguf_writer.h"

namespace fedge {

// Not thread-safe. Without a successful Finish() the destructor removes what was written; a file
// that stood at `path` before is untouched.
class GgufFileWriter {
 public:
  // Writes header, metadata and directory to a temporary file beside `path`. `env` must outlive the
  // writer. Errors are those of Env.
  static absl::StatusOr<std::unique_ptr<GgufFileWriter>> Create(
      absl::string_view path, const GgufWriter& metadata, absl::Span<const GgufTensorShape> tensors,
      Env& env);
  ~GgufFileWriter();
  GgufFileWriter(const GgufFileWriter&) = delete;
  GgufFileWriter& operator=(const GgufFileWriter&) = delete;

  // The next bytes of the tensor that is not complete yet; more than it lacks is a CHECK.
  absl::Status Append(absl::string_view data);
  // Syncs and renames. A tensor that is not complete is a CHECK.
  absl::Status Finish();

  uint64_t file_bytes() const { return file_bytes_; }  // written so far

 private:
  GgufFileWriter(absl::string_view path, Env& env);
  absl::Status Pad();

  Env& env_;
  const std::string path_;
  const std::string temporary_;
  std::unique_ptr<WritableFile> file_;
  std::vector<uint64_t> tensor_bytes_;
  size_t tensor_ = 0;       // the one being written
  uint64_t in_tensor_ = 0;  // bytes of it
  uint64_t file_bytes_ = 0;
  bool finished_ = false;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_FORMATS_GGUF_FILE_WRITER_H_
