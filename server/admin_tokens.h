// AdminService's methods about tokens, revocation and certificates. `membership` is null on a
// server that runs with --insecure: FailedPrecondition then. Other codes are those of Membership.
#ifndef FEDGE_SERVER_ADMIN_TOKENS_H_
#define FEDGE_SERVER_ADMIN_TOKENS_H_

#include "absl/status/statusor.h"
#include "fedge/v1/admin.pb.h"

namespace fedge {

class Membership;

absl::StatusOr<v1::TokenCreateResponse> TokenCreate(Membership* membership,
                                                    const v1::TokenCreateRequest& request);
absl::StatusOr<v1::TokenListResponse> TokenList(Membership* membership,
                                                const v1::TokenListRequest& request);
absl::StatusOr<v1::TokenRevokeResponse> TokenRevoke(Membership* membership,
                                                    const v1::TokenRevokeRequest& request);
absl::StatusOr<v1::NodeRevokeResponse> NodeRevoke(Membership* membership,
                                                  const v1::NodeRevokeRequest& request);
absl::StatusOr<v1::AuthorityRotateResponse> AuthorityRotate(
    Membership* membership, const v1::AuthorityRotateRequest& request);
absl::StatusOr<v1::OperatorCertifyResponse> OperatorCertify(
    Membership* membership, const v1::OperatorCertifyRequest& request);
absl::StatusOr<v1::OperatorRevokeResponse> OperatorRevoke(Membership* membership,
                                                          const v1::OperatorRevokeRequest& request);
absl::StatusOr<v1::OperatorListResponse> OperatorList(Membership* membership,
                                                      const v1::OperatorListRequest& request);

}  // namespace fedge

#endif  // FEDGE_SERVER_ADMIN_TOKENS_H_
