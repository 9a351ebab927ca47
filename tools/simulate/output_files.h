// The files a simulation leaves behind.
#ifndef FEDGE_TOOLS_SIMULATE_OUTPUT_FILES_H_
#define FEDGE_TOOLS_SIMULATE_OUTPUT_FILES_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/env.h"
#include "common/model/base_model.h"
#include "tools/report/run_report.h"
#include "tools/simulate/update_watch.h"

namespace fedge {

class OutputFiles {
 public:
  // Makes `dir`, checks that it can be written, and starts an empty metrics.jsonl.
  static absl::StatusOr<std::unique_ptr<OutputFiles>> Open(const std::string& dir, Env* env);

  // One line of metrics.jsonl.
  absl::Status AppendRound(const RoundRecord& record);
  // adapter.gguf and peft/; returns the SHA-256 (hex) of the former.
  absl::StatusOr<std::string> WriteAdapter(const LoraAdapter& adapter, const BaseModel& base,
                                           const std::string& base_name);
  // summary.json and report.html.
  absl::Status WriteReport(const RunReport& report);

  // A folder inside for what is only needed during the run; emptied now and by RemoveScratch.
  std::string scratch_dir() const { return JoinPath(dir_, ".simulation"); }
  absl::Status RemoveScratch();

 private:
  OutputFiles(std::string dir, Env* env) : dir_(std::move(dir)), env_(env) {}
  const std::string dir_;
  Env* const env_;
  std::unique_ptr<WritableFile> metrics_;
};

// Writes each update to <dir>/round-<r>/<node>.fup.
UploadWatcher KeepUpdates(std::string dir, Env* env);

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_OUTPUT_FILES_H_
