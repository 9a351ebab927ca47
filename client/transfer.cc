#include "client/transfer.h"

#include <algorithm>
#include <utility>

#include "common/base/digest.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"

namespace fedge {
namespace {

// Downloads that arrive whole with the wrong hash: the fault is hardly the line's.
constexpr int kMaxWrongWholes = 3;

template <typename T>
absl::Status MoveTo(absl::StatusOr<T> from, T* to) {
  if (from.ok()) *to = *std::move(from);
  return from.status();
}

}  // namespace

bool IsRetryable(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kResourceExhausted:
      return true;
    default:
      return false;
  }
}

Transfer::Transfer(FederationLink* link, Clock* clock, const RetryPolicy& policy, uint64_t seed,
                   std::function<bool()> stopping)
    : link_(link),
      clock_(clock),
      policy_(policy),
      rng_(Rng::Stream(seed, "transfer-jitter")),
      stopping_(std::move(stopping)) {}

absl::Status Transfer::Retry(const std::function<absl::Status(bool* progressed)>& attempt) {
  int failures = 0;
  while (true) {
    bool progressed = false;
    const absl::Status status = attempt(&progressed);
    if (status.ok()) return status;
    if (!IsRetryable(status)) return status;
    if (progressed) failures = 0;
    if (++failures >= policy_.max_attempts) return status;
    if (stopping_ && stopping_()) return absl::CancelledError("stopping");
    const absl::Duration grown = policy_.first_pause * (int64_t{1} << std::min(failures - 1, 30));
    const absl::Duration pause = std::min(grown, policy_.longest_pause);
    clock_->Sleep(pause * (0.5 + rng_.Uniform()));
  }
}

absl::StatusOr<v1::CheckInResponse> Transfer::CheckIn(const v1::CheckInRequest& request) {
  v1::CheckInResponse response;
  RETURN_IF_ERROR(Retry([&](bool*) -> absl::Status {
    return FEDGE_FAILPOINT_RUN("client.check_in", MoveTo(link_->CheckIn(request), &response));
  }));
  return response;
}

absl::Status Transfer::FetchOnce(const v1::DownloadRequest& request, uint64_t size,
                                 std::string* content) {
  return link_->Download(request, [&](const v1::Chunk& chunk) -> absl::Status {
    if (chunk.offset() != content->size()) {
      return absl::DataLossError(absl::StrCat("download: the server sent the piece at offset ",
                                              chunk.offset(), " instead of ", content->size()));
    }
    if (chunk.data().size() > kMaxChunkBytes || chunk.data().size() > size - content->size()) {
      return absl::DataLossError(absl::StrCat("download: a piece of ", chunk.data().size(),
                                              " bytes at offset ", chunk.offset(),
                                              " passes the content's end at ", size));
    }
    if (Crc32c(chunk.data()) != chunk.crc32c()) {
      return absl::AbortedError(absl::StrCat("download: the piece at offset ", chunk.offset(),
                                             " came damaged (CRC-32C)"));
    }
    content->append(chunk.data());
    return absl::OkStatus();
  });
}

absl::StatusOr<std::string> Transfer::Fetch(const std::string& node_id, const v1::ContentRef& ref,
                                            uint64_t max_bytes) {
  ASSIGN_OR_RETURN(const Digest wanted, DigestFromRaw(ref.sha256()));
  if (ref.size_bytes() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the server names content of ", ref.size_bytes(), " bytes where at most ",
                     max_bytes, " can be right; are server and client of the same version?"));
  }
  std::string content;
  int wrong_wholes = 0;
  v1::DownloadRequest request;
  request.set_node_id(node_id);
  request.set_sha256(ref.sha256());
  RETURN_IF_ERROR(Retry([&](bool* progressed) -> absl::Status {
    const size_t held = content.size();
    request.set_offset(held);
    const absl::Status status =
        FEDGE_FAILPOINT_RUN("client.download", FetchOnce(request, ref.size_bytes(), &content));
    *progressed = content.size() > held;
    if (absl::IsOutOfRange(
            status)) {  // the server's content is shorter: not what we hold a part of
      content.clear();
      return absl::AbortedError(status.message());
    }
    if (!status.ok()) return status;
    if (content.size() < ref.size_bytes()) {
      return absl::AbortedError(absl::StrCat("download: ended after ", content.size(), " of ",
                                             ref.size_bytes(), " bytes"));
    }
    if (Sha256Of(content) == wanted) return absl::OkStatus();
    // Every piece was as sent, so the whole is wrong: from the start again, a few times.
    content.clear();
    *progressed = false;
    const std::string problem =
        absl::StrCat("download: the content does not have the SHA-256 ", wanted.Hex());
    return ++wrong_wholes < kMaxWrongWholes ? absl::AbortedError(problem)
                                            : absl::DataLossError(problem);
  }));
  return content;
}

absl::StatusOr<v1::UploadReceipt> Transfer::Submit(const v1::UploadId& id,
                                                   const v1::TaskMetrics& metrics,
                                                   absl::string_view bytes) {
  v1::UploadReceipt receipt;
  v1::QueryUploadRequest query;
  *query.mutable_id() = id;
  uint64_t committed = 0;
  RETURN_IF_ERROR(Retry([&](bool* progressed) -> absl::Status {
    v1::QueryUploadResponse held;
    const absl::Status asked =
        FEDGE_FAILPOINT_RUN("client.query", MoveTo(link_->QueryUpload(query), &held));
    if (!asked.ok()) return asked;
    if (held.has_receipt()) {
      receipt = std::move(*held.mutable_receipt());
      return absl::OkStatus();
    }
    if (held.committed_bytes() > bytes.size()) {
      return absl::DataLossError(absl::StrCat("upload: the server claims to hold ",
                                              held.committed_bytes(), " bytes of an update of ",
                                              bytes.size()));
    }
    *progressed = held.committed_bytes() > committed;
    committed = held.committed_bytes();
    const absl::Status sent = FEDGE_FAILPOINT_RUN(
        "client.upload", MoveTo(link_->Upload(id, metrics, bytes, committed), &receipt));
    // Damaged on the way, or we disagree on the offset: ask where the server is and go on there.
    if (absl::IsDataLoss(sent) || absl::IsOutOfRange(sent)) {
      return absl::AbortedError(sent.message());
    }
    if (!sent.ok()) return sent;
    if (receipt.verdict() == v1::UploadReceipt::VERDICT_UNSPECIFIED) {
      return absl::AbortedError(absl::StrCat("upload: the server holds ", receipt.committed_bytes(),
                                             " of ", bytes.size(), " bytes and gave no verdict"));
    }
    return absl::OkStatus();
  }));
  return receipt;
}

absl::Status Transfer::Report(const v1::ReportRequest& request) {
  return Retry([&](bool*) { return link_->Report(request); });
}

}  // namespace fedge
