// The calls of AdminService as the commands make them: one attempt each, errors with their remedy.
#ifndef FEDGE_TOOLS_FEDGE_GRPC_ADMIN_LINK_H_
#define FEDGE_TOOLS_FEDGE_GRPC_ADMIN_LINK_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fedge/v1/admin.pb.h"
#include "tools/fedge/server_option.h"

namespace fedge {

// Not thread-safe. Codes are the server's; Unavailable when none answers.
class AdminLink {
 public:
  // Unavailable names the server and says what to look at. InvalidArgument: HOST:PORT without an
  // identity, or one that is damaged. Codes of ReadPrivateFile.
  static absl::StatusOr<std::unique_ptr<AdminLink>> Connect(const ServerOption& server);
  ~AdminLink();

  absl::StatusOr<v1::RunCreateResponse> RunCreate(const v1::RunCreateRequest& request);
  absl::StatusOr<v1::RunCreateResponse> RunClone(const v1::RunCloneRequest& request);
  absl::StatusOr<v1::RunListResponse> RunList(const v1::RunListRequest& request);
  absl::StatusOr<v1::RunShowResponse> RunShow(const v1::RunShowRequest& request);
  absl::StatusOr<v1::RunInfo> RunPause(const v1::RunRef& request);
  absl::StatusOr<v1::RunInfo> RunResume(const v1::RunRef& request);
  absl::StatusOr<v1::RunInfo> RunStop(const v1::RunRef& request);
  absl::StatusOr<v1::NodeListResponse> NodeList(const v1::NodeListRequest& request);
  absl::StatusOr<v1::NodeShowResponse> NodeShow(const v1::NodeShowRequest& request);
  absl::StatusOr<v1::ModelListResponse> ModelList(const v1::ModelRef& request);
  absl::StatusOr<v1::ModelInfo> ModelShow(const v1::ModelRef& request);
  absl::StatusOr<v1::ModelInfo> ModelPromote(const v1::ModelDecision& request);
  absl::StatusOr<v1::ModelInfo> ModelRollback(const v1::ModelDecision& request);
  absl::StatusOr<v1::AuditListResponse> AuditList(const v1::AuditListRequest& request);
  absl::Status ModelFetch(const v1::ModelRef& request,
                          absl::FunctionRef<bool(const v1::ModelPart&)> take);
  absl::StatusOr<v1::NodeRevokeResponse> NodeRevoke(const v1::NodeRevokeRequest& request);
  absl::StatusOr<v1::TokenCreateResponse> TokenCreate(const v1::TokenCreateRequest& request);
  absl::StatusOr<v1::TokenListResponse> TokenList(const v1::TokenListRequest& request);
  absl::StatusOr<v1::TokenRevokeResponse> TokenRevoke(const v1::TokenRevokeRequest& request);
  absl::StatusOr<v1::AuthorityRotateResponse> AuthorityRotate(
      const v1::AuthorityRotateRequest& request);
  absl::StatusOr<v1::OperatorCertifyResponse> OperatorCertify(
      const v1::OperatorCertifyRequest& request);
  absl::StatusOr<v1::OperatorRevokeResponse> OperatorRevoke(
      const v1::OperatorRevokeRequest& request);
  absl::StatusOr<v1::OperatorListResponse> OperatorList(const v1::OperatorListRequest& request);

  // Streams: until `take` returns false, `interrupted` (may be empty) true, or the server ends it.
  // OK in all three cases.
  absl::Status RunWatch(const v1::RunRef& request, absl::FunctionRef<bool(const v1::RunInfo&)> take,
                        const std::function<bool()>& interrupted);
  absl::Status Logs(const v1::LogsRequest& request, absl::FunctionRef<bool(const v1::Event&)> take,
                    const std::function<bool()>& interrupted);

 private:
  struct State;
  explicit AdminLink(std::unique_ptr<State> state);
  const std::unique_ptr<State> state_;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_GRPC_ADMIN_LINK_H_
