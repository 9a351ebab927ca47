#include "client/metered_link.h"

#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"

namespace fedge {

DailyTraffic::DailyTraffic(std::string path, Env* env, Clock* clock)
    : path_(std::move(path)), env_(env), clock_(clock), day_(Day()) {
  const absl::StatusOr<std::string> text = env_->ReadFile(path_, 100);
  if (!text.ok()) return;
  const std::vector<absl::string_view> words =
      absl::StrSplit(*text, absl::ByAnyChar(" \n"), absl::SkipEmpty());
  int64_t day = 0;
  uint64_t bytes = 0;
  if (words.size() != 2 || !absl::SimpleAtoi(words[0], &day) ||
      !absl::SimpleAtoi(words[1], &bytes)) {
    return;
  }
  absl::MutexLock lock(&mutex_);
  if (day == day_) bytes_ = bytes;
}

int64_t DailyTraffic::Day() {
  return absl::ToCivilDay(clock_->Now(), absl::LocalTimeZone()) - absl::CivilDay(1970, 1, 1);
}

void DailyTraffic::Add(uint64_t bytes) {
  const int64_t day = Day();
  absl::MutexLock lock(&mutex_);
  if (day != day_) bytes_ = 0;
  day_ = day;
  bytes_ += bytes;
}

uint64_t DailyTraffic::today() {
  Add(0);
  absl::MutexLock lock(&mutex_);
  return bytes_;
}

absl::Status DailyTraffic::Save() {
  std::string text;
  {
    absl::MutexLock lock(&mutex_);
    text = absl::StrCat(day_, " ", bytes_, "\n");
  }
  return env_->WriteFileAtomic(path_, text);
}

absl::StatusOr<v1::CheckInResponse> MeteredLink::CheckIn(const v1::CheckInRequest& request) {
  absl::StatusOr<v1::CheckInResponse> response = link_->CheckIn(request);
  traffic_->Add(kCallOverheadBytes + request.ByteSizeLong() +
                (response.ok() ? response->ByteSizeLong() : 0));
  return response;
}

absl::Status MeteredLink::Download(const v1::DownloadRequest& request, const ChunkSink& sink) {
  traffic_->Add(kCallOverheadBytes + request.ByteSizeLong());
  return link_->Download(request, [&](const v1::Chunk& chunk) {
    traffic_->Add(chunk.ByteSizeLong());
    return sink(chunk);
  });
}

absl::StatusOr<v1::QueryUploadResponse> MeteredLink::QueryUpload(
    const v1::QueryUploadRequest& request) {
  absl::StatusOr<v1::QueryUploadResponse> response = link_->QueryUpload(request);
  traffic_->Add(kCallOverheadBytes + request.ByteSizeLong() +
                (response.ok() ? response->ByteSizeLong() : 0));
  return response;
}

absl::StatusOr<v1::UploadReceipt> MeteredLink::Upload(const v1::UploadId& id,
                                                      const v1::TaskMetrics& metrics,
                                                      absl::string_view bytes, uint64_t offset) {
  // All of it, although a call that breaks off has sent less.
  traffic_->Add(kCallOverheadBytes + id.ByteSizeLong() + metrics.ByteSizeLong() + bytes.size() -
                offset);
  return link_->Upload(id, metrics, bytes, offset);
}

absl::Status MeteredLink::Report(const v1::ReportRequest& request) {
  traffic_->Add(kCallOverheadBytes + request.ByteSizeLong());
  return link_->Report(request);
}

}  // namespace fedge
