// AdminService's methods about versions of adapters and decisions on record.
#ifndef FEDGE_SERVER_ADMIN_MODELS_H_
#define FEDGE_SERVER_ADMIN_MODELS_H_

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fedge/v1/admin.pb.h"
#include "server/admin_context.h"

namespace fedge {

// An empty run id means the run of the server's configuration. NotFound: no such run is served, or
// it has no such version. Codes of FederationCore's methods.
absl::StatusOr<v1::ModelListResponse> ModelList(const AdminContext& context,
                                                const v1::ModelRef& request);
absl::StatusOr<v1::ModelInfo> ModelShow(const AdminContext& context, const v1::ModelRef& request);
absl::StatusOr<v1::ModelInfo> ModelPromote(const AdminContext& context,
                                           const v1::ModelDecision& request);
absl::StatusOr<v1::ModelInfo> ModelRollback(const AdminContext& context,
                                            const v1::ModelDecision& request);
absl::StatusOr<v1::AuditListResponse> AuditList(const AdminContext& context,
                                                const v1::AuditListRequest& request);

// What devices hold at a version, in pieces, until `send` returns false.
absl::Status ModelFetch(const AdminContext& context, const v1::ModelRef& request,
                        absl::FunctionRef<bool(const v1::ModelPart&)> send);

}  // namespace fedge

#endif  // FEDGE_SERVER_ADMIN_MODELS_H_
