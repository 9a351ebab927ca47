// AdminService's methods about runs.
#ifndef FEDGE_SERVER_ADMIN_RUNS_H_
#define FEDGE_SERVER_ADMIN_RUNS_H_

#include "absl/status/statusor.h"
#include "fedge/v1/admin.pb.h"
#include "server/admin_context.h"

namespace fedge {

// Codes as those of Federation (server/federation.h). All may be repeated.
absl::StatusOr<v1::RunCreateResponse> RunCreate(const AdminContext& context,
                                                const v1::RunCreateRequest& request);
absl::StatusOr<v1::RunCreateResponse> RunClone(const AdminContext& context,
                                               const v1::RunCloneRequest& request);
absl::StatusOr<v1::RunListResponse> RunList(const AdminContext& context,
                                            const v1::RunListRequest& request);
absl::StatusOr<v1::RunShowResponse> RunShow(const AdminContext& context,
                                            const v1::RunShowRequest& request);
absl::StatusOr<v1::RunInfo> RunPause(const AdminContext& context, const v1::RunRef& request);
absl::StatusOr<v1::RunInfo> RunResume(const AdminContext& context, const v1::RunRef& request);
absl::StatusOr<v1::RunInfo> RunStop(const AdminContext& context, const v1::RunRef& request);

// What RunWatch sends.
absl::StatusOr<v1::RunInfo> RunNow(const AdminContext& context, const v1::RunRef& request);

}  // namespace fedge

#endif  // FEDGE_SERVER_ADMIN_RUNS_H_
