// What nodes send, seen on its way to the server.
#ifndef FEDGE_TOOLS_SIMULATE_UPDATE_WATCH_H_
#define FEDGE_TOOLS_SIMULATE_UPDATE_WATCH_H_

#include <functional>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "client/federation_link.h"
#include "common/adapter/lora_adapter.h"
#include "common/codec/update_anatomy.h"
#include "tools/report/run_report.h"

namespace fedge {

// Gets a whole encoded update; an error ends the upload with it. Called from several threads.
using UploadWatcher = std::function<absl::Status(const v1::UploadId& id, absl::string_view bytes)>;

// Passes everything on, and shows `watcher` each update first.
std::unique_ptr<FederationLink> WatchUploads(std::unique_ptr<FederationLink> link,
                                             UploadWatcher watcher);

// Adds up where the bytes of updates go. Thread-safe.
class AnatomySum {
 public:
  explicit AnatomySum(LoraSpec spec) : spec_(std::move(spec)) {}

  // What cannot be decoded (an attacker's) is left out.
  void Note(absl::string_view update);
  // Nothing: no update came.
  std::optional<UpdateSections> Sections() const;

 private:
  const LoraSpec spec_;
  mutable absl::Mutex mutex_;
  UpdateAnatomy sum_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_UPDATE_WATCH_H_
