// Who may call what: one table of all methods. What is not in it nobody may call.
#ifndef FEDGE_SERVER_ACCESS_POLICY_H_
#define FEDGE_SERVER_ACCESS_POLICY_H_

#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/security/certificate.h"

namespace fedge {

enum class ListenerKind { kFleet, kEnrollment, kAdmin };
absl::string_view ListenerName(ListenerKind listener);

struct MethodPolicy {
  absl::string_view path;  // "/fedge.v1.FederationService/CheckIn"
  ListenerKind listener;
  bool anyone = false;      // also without a certificate
  bool node = false;        // with a node's
  bool admin_read = false;  // with an operator's; one who may write may read
  bool admin_write = false;
};

const std::vector<MethodPolicy>& MethodPolicies();

// OK, Unauthenticated (a certificate is needed) or PermissionDenied (not with this one, or not
// there, or no such method). `peer`: none without a certificate.
absl::Status CheckAccess(ListenerKind listener, const std::optional<PeerIdentity>& peer,
                         absl::string_view path);

}  // namespace fedge

#endif  // FEDGE_SERVER_ACCESS_POLICY_H_
