// What a device sends and receives, counted: of each call, over any link, and of the day.
#ifndef FEDGE_CLIENT_METERED_LINK_H_
#define FEDGE_CLIENT_METERED_LINK_H_

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/federation_link.h"
#include "common/base/clock.h"
#include "common/base/env.h"

namespace fedge {

// Bytes of a local day, kept over restarts. A clock that is set to another day begins a new count.
// Thread-safe.
class DailyTraffic {
 public:
  // `path` holds the count; what cannot be read counts as nothing. Borrows env and clock.
  DailyTraffic(std::string path, Env* env, Clock* clock);
  void Add(uint64_t bytes);
  uint64_t today();
  // To disk. A count that cannot be kept is lost with the process, no more.
  absl::Status Save();

 private:
  int64_t Day();

  const std::string path_;
  Env* const env_;
  Clock* const clock_;
  absl::Mutex mutex_;
  int64_t day_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

// What a call costs beside its messages: headers of HTTP/2, of TCP and IP. A connection costs more
// (a TLS handshake some 4 KB); calls that follow each other share one.
inline constexpr uint64_t kCallOverheadBytes = 600;

// Counts messages, content and kCallOverheadBytes of each call.
class MeteredLink : public FederationLink {
 public:
  // Both are borrowed.
  MeteredLink(FederationLink* link, DailyTraffic* traffic) : link_(link), traffic_(traffic) {}

  absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request) override;
  absl::Status Download(const v1::DownloadRequest& request, const ChunkSink& sink) override;
  absl::StatusOr<v1::QueryUploadResponse> QueryUpload(
      const v1::QueryUploadRequest& request) override;
  absl::StatusOr<v1::UploadReceipt> Upload(const v1::UploadId& id, const v1::TaskMetrics& metrics,
                                           absl::string_view bytes, uint64_t offset) override;
  absl::Status Report(const v1::ReportRequest& request) override;
  void Rest() override { link_->Rest(); }
  void Interrupt() override { link_->Interrupt(); }

 private:
  FederationLink* const link_;
  DailyTraffic* const traffic_;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_METERED_LINK_H_
