// What makes this device a node: its key and certificate, the authorities it trusts, where its
// server is. In <state dir>/identity:
//
//   node.pem          key and certificate, mode 0600; replaced as one
//   authorities.pem   whose certificates are the server's
//   server            host:port of the fleet's listener
//   joining-key.pem   the key of an enrolment that has not been answered, mode 0600
#ifndef FEDGE_CLIENT_NODE_IDENTITY_H_
#define FEDGE_CLIENT_NODE_IDENTITY_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/env.h"
#include "common/security/certificate.h"
#include "common/security/keys.h"
#include "fedge/v1/identity.pb.h"

namespace fedge {

struct NodeIdentity {
  PrivateKey key;
  Certificate certificate;
  std::vector<Certificate> authorities;
  std::string server;  // "host:port"

  const std::string& node_id() const { return certificate.identity().name; }
};

// When to ask for the next certificate: at two thirds of this one's life, a little earlier or later
// from node to node.
absl::Time RenewalTime(const Certificate& certificate);

// Not thread-safe.
class IdentityFolder {
 public:
  IdentityFolder(absl::string_view state_dir, Env* env);

  bool Exists() const;
  // NotFound: this device has not joined (says how). PermissionDenied: others may read the key.
  // DataLoss: a file is damaged or does not fit the others.
  absl::StatusOr<NodeIdentity> Load() const;

  // The key to join with: that of an earlier attempt, so that its token still works, or a new one.
  absl::StatusOr<PrivateKey> JoiningKey();
  // Checks what the server issued for `key`, and makes it this device's identity. DataLoss: it is
  // not for this key, or not by the authorities that come with it.
  absl::StatusOr<NodeIdentity> Store(const PrivateKey& key, const v1::NodeCertificate& issued,
                                     absl::string_view server);
  absl::Status Remove();

 private:
  std::string Path(absl::string_view name) const { return JoinPath(dir_, name); }

  const std::string dir_;
  Env* const env_;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_NODE_IDENTITY_H_
