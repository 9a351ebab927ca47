#include "server/access_policy.h"

#include "absl/strings/str_cat.h"

namespace fedge {
namespace {

constexpr ListenerKind kFleet = ListenerKind::kFleet;
constexpr ListenerKind kAdmin = ListenerKind::kAdmin;

MethodPolicy ForNodes(absl::string_view path) {
  return {.path = path, .listener = kFleet, .node = true};
}
MethodPolicy ForReaders(absl::string_view path) {
  return {.path = path, .listener = kAdmin, .admin_read = true, .admin_write = true};
}
MethodPolicy ForWriters(absl::string_view path) {
  return {.path = path, .listener = kAdmin, .admin_write = true};
}

}  // namespace

absl::string_view ListenerName(ListenerKind listener) {
  switch (listener) {
    case ListenerKind::kFleet:
      return "fleet";
    case ListenerKind::kEnrollment:
      return "enrolment";
    case ListenerKind::kAdmin:
      return "admin";
  }
  return "unknown";
}

const std::vector<MethodPolicy>& MethodPolicies() {
  static const auto* const table = new std::vector<MethodPolicy>{
      {.path = "/fedge.v1.EnrollmentService/Enroll",
       .listener = ListenerKind::kEnrollment,
       .anyone = true},
      // For health checks of containers and load balancers.
      {.path = "/grpc.health.v1.Health/Check",
       .listener = ListenerKind::kEnrollment,
       .anyone = true},
      ForNodes("/fedge.v1.IdentityService/Renew"),
      ForNodes("/fedge.v1.FederationService/CheckIn"),
      ForNodes("/fedge.v1.FederationService/Download"),
      ForNodes("/fedge.v1.FederationService/QueryUpload"),
      ForNodes("/fedge.v1.FederationService/Upload"),
      ForNodes("/fedge.v1.FederationService/Report"),
      ForNodes("/grpc.health.v1.Health/Check"),

      ForReaders("/fedge.v1.AdminService/RunList"),
      ForReaders("/fedge.v1.AdminService/RunShow"),
      ForReaders("/fedge.v1.AdminService/RunWatch"),
      ForReaders("/fedge.v1.AdminService/NodeList"),
      ForReaders("/fedge.v1.AdminService/NodeShow"),
      ForReaders("/fedge.v1.AdminService/ModelList"),
      ForReaders("/fedge.v1.AdminService/ModelShow"),
      ForReaders("/fedge.v1.AdminService/ModelFetch"),
      ForWriters("/fedge.v1.AdminService/ModelPromote"),
      ForWriters("/fedge.v1.AdminService/ModelRollback"),
      ForReaders("/fedge.v1.AdminService/AuditList"),
      ForReaders("/fedge.v1.AdminService/Logs"),
      ForReaders("/fedge.v1.AdminService/TokenList"),
      ForReaders("/fedge.v1.AdminService/OperatorList"),
      ForReaders("/grpc.health.v1.Health/Check"),
      ForReaders("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),

      ForWriters("/fedge.v1.AdminService/RunCreate"),
      ForWriters("/fedge.v1.AdminService/RunPause"),
      ForWriters("/fedge.v1.AdminService/RunResume"),
      ForWriters("/fedge.v1.AdminService/RunStop"),
      ForWriters("/fedge.v1.AdminService/RunClone"),
      ForWriters("/fedge.v1.AdminService/TokenCreate"),
      ForWriters("/fedge.v1.AdminService/TokenRevoke"),
      ForWriters("/fedge.v1.AdminService/NodeRevoke"),
      ForWriters("/fedge.v1.AdminService/AuthorityRotate"),
      ForWriters("/fedge.v1.AdminService/OperatorCertify"),
      ForWriters("/fedge.v1.AdminService/OperatorRevoke"),
  };
  return *table;
}

absl::Status CheckAccess(ListenerKind listener, const std::optional<PeerIdentity>& peer,
                         absl::string_view path) {
  for (const MethodPolicy& policy : MethodPolicies()) {
    if (policy.path != path || policy.listener != listener) continue;
    if (policy.anyone) return absl::OkStatus();
    if (!peer) return absl::UnauthenticatedError(absl::StrCat(path, ": needs a certificate"));
    const bool allowed = (policy.node && peer->kind == PeerKind::kNode) ||
                         (policy.admin_read && peer->kind == PeerKind::kAdminRead) ||
                         (policy.admin_write && peer->kind == PeerKind::kAdminWrite);
    if (allowed) return absl::OkStatus();
    return absl::PermissionDeniedError(
        absl::StrCat(path, ": not allowed for ", PeerKindName(peer->kind), " '", peer->name, "'"));
  }
  return absl::PermissionDeniedError(
      absl::StrCat(path, ": not served on the ", ListenerName(listener), " listener"));
}

}  // namespace fedge
