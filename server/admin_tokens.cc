#include "server/admin_tokens.h"

#include <algorithm>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/security/join_token.h"
#include "server/membership.h"

namespace fedge {
namespace {

constexpr uint64_t kMaxSeconds = uint64_t{10} * 365 * 24 * 3600;  // limits are Membership's

absl::Status CheckMembership(const Membership* membership) {
  if (membership != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "this server runs with --insecure: its nodes have no certificates and need no tokens");
}

absl::Duration Seconds(uint64_t seconds, absl::Duration if_zero) {
  if (seconds == 0) return if_zero;
  return absl::Seconds(static_cast<int64_t>(std::min(seconds, kMaxSeconds)));
}

v1::TokenInfo InfoOf(const TokenRecord& token) {
  v1::TokenInfo info;
  info.set_token_id(JoinTokenId(token.hash));
  info.set_created_us(absl::ToUnixMicros(token.created));
  info.set_expires_us(absl::ToUnixMicros(token.expires));
  info.set_uses(token.uses);
  info.set_used(token.used);
  info.set_node_id(token.node_id);
  info.set_revoked(token.revoked);
  return info;
}

}  // namespace

absl::StatusOr<v1::TokenCreateResponse> TokenCreate(Membership* membership,
                                                    const v1::TokenCreateRequest& request) {
  RETURN_IF_ERROR(CheckMembership(membership));
  TokenRequest wanted;
  if (request.uses() != 0) wanted.uses = request.uses();
  wanted.lifetime = Seconds(request.lifetime_seconds(), wanted.lifetime);
  wanted.node_id = request.node_id();
  wanted.address = request.address();
  TokenRecord record;
  v1::TokenCreateResponse response;
  ASSIGN_OR_RETURN(*response.mutable_token(), membership->CreateToken(wanted, &record));
  *response.mutable_info() = InfoOf(record);
  return response;
}

absl::StatusOr<v1::TokenListResponse> TokenList(Membership* membership,
                                                const v1::TokenListRequest&) {
  RETURN_IF_ERROR(CheckMembership(membership));
  ASSIGN_OR_RETURN(const std::vector<TokenRecord> tokens, membership->ListTokens());
  v1::TokenListResponse response;
  for (const TokenRecord& token : tokens) *response.add_tokens() = InfoOf(token);
  return response;
}

absl::StatusOr<v1::TokenRevokeResponse> TokenRevoke(Membership* membership,
                                                    const v1::TokenRevokeRequest& request) {
  RETURN_IF_ERROR(CheckMembership(membership));
  RETURN_IF_ERROR(membership->RevokeToken(request.token_id()));
  return v1::TokenRevokeResponse();
}

absl::StatusOr<v1::NodeRevokeResponse> NodeRevoke(Membership* membership,
                                                  const v1::NodeRevokeRequest& request) {
  RETURN_IF_ERROR(CheckMembership(membership));
  RETURN_IF_ERROR(membership->RevokeNode(request.node_id(), request.reason()));
  return v1::NodeRevokeResponse();
}

absl::StatusOr<v1::AuthorityRotateResponse> AuthorityRotate(
    Membership* membership, const v1::AuthorityRotateRequest& request) {
  RETURN_IF_ERROR(CheckMembership(membership));
  CertificateAuthority& authority = membership->authority();
  ASSIGN_OR_RETURN(const absl::Time serving_from, authority.Rotate(request.at_once()));
  v1::AuthorityRotateResponse response;
  response.set_sha256(authority.authorities().back().Fingerprint().Raw());
  response.set_serving_from_us(absl::ToUnixMicros(serving_from));
  return response;
}

absl::StatusOr<v1::OperatorCertifyResponse> OperatorCertify(
    Membership* membership, const v1::OperatorCertifyRequest& request) {
  RETURN_IF_ERROR(CheckMembership(membership));
  ASSIGN_OR_RETURN(const Certificate certificate,
                   membership->CertifyOperator(
                       request.name(), request.may_write(), request.certificate_request(),
                       Seconds(request.lifetime_seconds(), absl::Hours(24 * 90))));
  v1::OperatorCertifyResponse response;
  response.set_certificate_pem(certificate.Pem());
  response.set_authorities_pem(membership->authority().AuthoritiesPem());
  return response;
}

absl::StatusOr<v1::OperatorRevokeResponse> OperatorRevoke(
    Membership* membership, const v1::OperatorRevokeRequest& request) {
  RETURN_IF_ERROR(CheckMembership(membership));
  RETURN_IF_ERROR(membership->RevokeOperator(request.name()));
  return v1::OperatorRevokeResponse();
}

absl::StatusOr<v1::OperatorListResponse> OperatorList(Membership* membership,
                                                      const v1::OperatorListRequest&) {
  RETURN_IF_ERROR(CheckMembership(membership));
  ASSIGN_OR_RETURN(const std::vector<OperatorRecord> operators, membership->ListOperators());
  v1::OperatorListResponse response;
  for (const OperatorRecord& record : operators) {
    v1::OperatorInfo& info = *response.add_operators();
    info.set_name(record.name);
    info.set_may_write(record.may_write);
    info.set_made_us(absl::ToUnixMicros(record.made));
    info.set_expires_us(absl::ToUnixMicros(record.expires));
    info.set_revoked(membership->IsRevokedOperator(record.name));
  }
  return response;
}

}  // namespace fedge
