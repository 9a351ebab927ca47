// A whole aggregation server for one node, in memory, behind the link's interface, with faults to
// order: calls that fail, transfers that break off, receipts that get lost.
#ifndef FEDGE_TESTS_CLIENT_FAKE_SERVER_H_
#define FEDGE_TESTS_CLIENT_FAKE_SERVER_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "client/federation_link.h"
#include "common/base/digest.h"
#include "common/base/status.h"

namespace fedge::testing {

class FakeServer : public FederationLink {
 public:
  // What a check-in is answered with.
  v1::CheckInResponse answer;
  std::vector<v1::CheckInResponse> first_answers;  // each once, before `answer`
  std::map<std::string, std::string> content;      // by raw SHA-256
  uint64_t chunk_bytes = 64;
  v1::UploadReceipt::Verdict verdict = v1::UploadReceipt::ACCEPTED;
  std::string reason;

  // Faults, each used up as it strikes.
  std::vector<absl::Status> check_in_errors;  // the next check-ins, in order
  std::vector<int> break_downloads_after;     // chunks until Unavailable, one entry a call
  std::vector<int> damage_download_chunk;     // index of the chunk with a flipped byte, one a call
  std::vector<uint64_t> break_uploads_after;  // bytes taken until Unavailable, one entry a call
  int lose_receipts = 0;                      // so many uploads arrive, but the answer does not
  absl::Status report_error;
  absl::Status upload_error;  // of every upload, when set

  // What happened.
  std::vector<v1::CheckInRequest> check_ins;
  std::vector<uint64_t> download_offsets;
  std::vector<uint64_t> upload_offsets;
  std::vector<v1::ReportRequest> reports;
  std::string received;        // the bytes of the upload at hand
  std::string received_whole;  // of the last whole one
  v1::TaskMetrics metrics;
  int times_counted = 0;

  v1::ContentRef Offer(const std::string& bytes) {
    v1::ContentRef ref;
    ref.set_sha256(Sha256Of(bytes).Raw());
    ref.set_size_bytes(bytes.size());
    content[ref.sha256()] = bytes;
    return ref;
  }

  absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request) override {
    check_ins.push_back(request);
    const absl::Status error = Next(&check_in_errors, absl::OkStatus());
    if (!error.ok()) return error;
    return Next(&first_answers, answer);
  }

  absl::Status Download(const v1::DownloadRequest& request, const ChunkSink& sink) override {
    download_offsets.push_back(request.offset());
    const auto found = content.find(request.sha256());
    if (found == content.end()) return absl::NotFoundError("no such content");
    const int break_after = Next(&break_downloads_after, -1);
    const int damaged = Next(&damage_download_chunk, -1);
    uint64_t offset = request.offset();
    for (int i = 0; offset < found->second.size(); ++i) {
      if (i == break_after) return absl::UnavailableError("line cut");
      v1::Chunk chunk;
      chunk.set_offset(offset);
      chunk.set_data(found->second.substr(offset, chunk_bytes));
      chunk.set_crc32c(Crc32c(chunk.data()));
      if (i == damaged) (*chunk.mutable_data())[0] = static_cast<char>(chunk.data()[0] ^ 1);
      offset += chunk.data().size();
      RETURN_IF_ERROR(sink(chunk));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<v1::QueryUploadResponse> QueryUpload(
      const v1::QueryUploadRequest& request) override {
    v1::QueryUploadResponse response;
    if (request.id().sha256() != upload_hash_) {
      received.clear();
      upload_hash_ = request.id().sha256();
    }
    if (finished_ == upload_hash_) *response.mutable_receipt() = Receipt();
    response.set_committed_bytes(received.size());
    return response;
  }

  absl::StatusOr<v1::UploadReceipt> Upload(const v1::UploadId& id, const v1::TaskMetrics& sent,
                                           absl::string_view bytes, uint64_t offset) override {
    upload_offsets.push_back(offset);
    if (!upload_error.ok()) return upload_error;
    if (offset != received.size()) return absl::OutOfRangeError("not at the committed offset");
    metrics = sent;
    const uint64_t taken =
        std::min<uint64_t>(Next(&break_uploads_after, bytes.size()), bytes.size() - offset);
    received.append(bytes.data() + offset, taken);
    if (received.size() < bytes.size()) return absl::UnavailableError("line cut");
    if (Sha256Of(received).Raw() != id.sha256()) {
      received.clear();
      return absl::DataLossError("wrong SHA-256");
    }
    if (finished_ != id.sha256()) ++times_counted;
    finished_ = id.sha256();
    received_whole = received;
    if (lose_receipts > 0) {
      --lose_receipts;
      return absl::UnavailableError("line cut before the receipt");
    }
    return Receipt();
  }

  absl::Status Report(const v1::ReportRequest& request) override {
    reports.push_back(request);
    return report_error;
  }

 private:
  template <typename T>
  static T Next(std::vector<T>* faults, T otherwise) {
    if (faults->empty()) return otherwise;
    const T fault = faults->front();
    faults->erase(faults->begin());
    return fault;
  }

  v1::UploadReceipt Receipt() const {
    v1::UploadReceipt receipt;
    receipt.set_verdict(verdict);
    receipt.set_reason(reason);
    receipt.set_committed_bytes(received.size());
    return receipt;
  }

  std::string upload_hash_;
  std::string finished_;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_CLIENT_FAKE_SERVER_H_
