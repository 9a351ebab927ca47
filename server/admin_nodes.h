// AdminService's methods about nodes.
#ifndef FEDGE_SERVER_ADMIN_NODES_H_
#define FEDGE_SERVER_ADMIN_NODES_H_

#include "absl/status/statusor.h"
#include "fedge/v1/admin.pb.h"
#include "server/admin_context.h"

namespace fedge {

absl::StatusOr<v1::NodeListResponse> NodeList(const AdminContext& context,
                                              const v1::NodeListRequest& request);
// NotFound: it has never checked in.
absl::StatusOr<v1::NodeShowResponse> NodeShow(const AdminContext& context,
                                              const v1::NodeShowRequest& request);

}  // namespace fedge

#endif  // FEDGE_SERVER_ADMIN_NODES_H_
