// A link that passes everything on: the base of links that change or watch one thing.
#ifndef FEDGE_CLIENT_FORWARDING_LINK_H_
#define FEDGE_CLIENT_FORWARDING_LINK_H_

#include <memory>
#include <utility>

#include "client/federation_link.h"

namespace fedge {

class ForwardingLink : public FederationLink {
 public:
  explicit ForwardingLink(std::unique_ptr<FederationLink> link) : link_(std::move(link)) {}

  absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request) override {
    return link_->CheckIn(request);
  }
  absl::Status Download(const v1::DownloadRequest& request, const ChunkSink& sink) override {
    return link_->Download(request, sink);
  }
  absl::StatusOr<v1::QueryUploadResponse> QueryUpload(
      const v1::QueryUploadRequest& request) override {
    return link_->QueryUpload(request);
  }
  absl::StatusOr<v1::UploadReceipt> Upload(const v1::UploadId& id, const v1::TaskMetrics& metrics,
                                           absl::string_view bytes, uint64_t offset) override {
    return link_->Upload(id, metrics, bytes, offset);
  }
  absl::Status Report(const v1::ReportRequest& request) override { return link_->Report(request); }
  void Rest() override { link_->Rest(); }
  void Interrupt() override { link_->Interrupt(); }

 protected:
  const std::unique_ptr<FederationLink> link_;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_FORWARDING_LINK_H_
