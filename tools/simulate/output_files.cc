#include "tools/simulate/output_files.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "client/adapter_folder.h"
#include "common/base/digest.h"
#include "common/base/status.h"
#include "tools/report/html_report.h"

namespace fedge {

absl::StatusOr<std::unique_ptr<OutputFiles>> OutputFiles::Open(const std::string& dir, Env* env) {
  RETURN_IF_ERROR(env->CreateDirs(dir));
  std::unique_ptr<OutputFiles> files(new OutputFiles(dir, env));
  RETURN_IF_ERROR(files->RemoveScratch());
  RETURN_IF_ERROR(env->CreateDirs(files->scratch_dir()));
  ASSIGN_OR_RETURN(files->metrics_, env->OpenForWrite(JoinPath(dir, "metrics.jsonl")));
  return files;
}

absl::Status OutputFiles::AppendRound(const RoundRecord& record) {
  return metrics_->Append(RoundJson(record) + "\n");
}

absl::StatusOr<std::string> OutputFiles::WriteAdapter(const LoraAdapter& adapter,
                                                      const BaseModel& base,
                                                      const std::string& base_name) {
  RETURN_IF_ERROR(WriteAdapterBothWays(adapter, base, base_name, dir_, *env_));
  ASSIGN_OR_RETURN(const std::string bytes, env_->ReadFile(JoinPath(dir_, "adapter.gguf")));
  return Sha256Of(bytes).Hex();
}

absl::Status OutputFiles::WriteReport(const RunReport& report) {
  RETURN_IF_ERROR(metrics_->Sync());
  RETURN_IF_ERROR(
      env_->WriteFileAtomic(JoinPath(dir_, "summary.json"), ReportJson(report, 2) + "\n"));
  return env_->WriteFileAtomic(JoinPath(dir_, "report.html"), HtmlReport(report));
}

absl::Status OutputFiles::RemoveScratch() {
  return env_->Exists(scratch_dir()) ? env_->Remove(scratch_dir()) : absl::OkStatus();
}

UploadWatcher KeepUpdates(std::string dir, Env* env) {
  return [dir = std::move(dir), env](const v1::UploadId& id, absl::string_view bytes) {
    const std::string round = JoinPath(dir, absl::StrFormat("round-%04d", id.round()));
    const std::string name = absl::StrCat(Sha256Of(id.node_id()).Hex().substr(0, 16), ".fup");
    RETURN_IF_ERROR(env->CreateDirs(round));
    return env->WriteFileAtomic(JoinPath(round, name), bytes);
  };
}

}  // namespace fedge
