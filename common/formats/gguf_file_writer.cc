#include "common/formats/gguf_file_writer.h"

#include <unistd.h>

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

std::string TemporaryPath(absl::string_view path) {
  static std::atomic<uint64_t> counter{0};
  return absl::StrCat(path, ".tmp-", getpid(), "-gguf-", counter.fetch_add(1));
}

}  // namespace

GgufFileWriter::GgufFileWriter(absl::string_view path, Env& env)
    : env_(env), path_(path), temporary_(TemporaryPath(path)) {}

GgufFileWriter::~GgufFileWriter() {
  if (finished_ || file_ == nullptr) return;
  file_.reset();
  env_.Remove(temporary_).IgnoreError();
}

absl::StatusOr<std::unique_ptr<GgufFileWriter>> GgufFileWriter::Create(
    absl::string_view path, const GgufWriter& metadata, absl::Span<const GgufTensorShape> tensors,
    Env& env) {
  std::unique_ptr<GgufFileWriter> writer(new GgufFileWriter(path, env));
  for (const GgufTensorShape& tensor : tensors) {
    writer->tensor_bytes_.push_back(static_cast<uint64_t>(tensor.bytes()));
  }
  const std::string head = metadata.SerializeHead(tensors);
  ASSIGN_OR_RETURN(writer->file_, env.OpenForWrite(writer->temporary_));
  RETURN_IF_ERROR(writer->file_->Append(head));
  writer->file_bytes_ = head.size();
  return writer;
}

absl::Status GgufFileWriter::Pad() {
  const std::string zeros(
      (kGgufWriterAlignment - file_bytes_ % kGgufWriterAlignment) % kGgufWriterAlignment, '\0');
  if (zeros.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(file_->Append(zeros));
  file_bytes_ += zeros.size();
  return absl::OkStatus();
}

absl::Status GgufFileWriter::Append(absl::string_view data) {
  FEDGE_CHECK(!finished_ && tensor_ < tensor_bytes_.size() &&
                  data.size() <= tensor_bytes_[tensor_] - in_tensor_,
              "tensor ", tensor_, " of ", tensor_bytes_.size());
  RETURN_IF_ERROR(file_->Append(data));
  file_bytes_ += data.size();
  in_tensor_ += data.size();
  if (in_tensor_ < tensor_bytes_[tensor_]) return absl::OkStatus();
  ++tensor_;
  in_tensor_ = 0;
  return Pad();
}

absl::Status GgufFileWriter::Finish() {
  FEDGE_CHECK(!finished_ && tensor_ == tensor_bytes_.size(), tensor_);
  RETURN_IF_ERROR(file_->Sync());
  RETURN_IF_ERROR(file_->Close());
  RETURN_IF_ERROR(env_.Rename(temporary_, path_));
  finished_ = true;  // the file is in place, whatever the folder's sync says
  return env_.SyncDir(DirName(path_));
}

}  // namespace fedge
