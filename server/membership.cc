#include "server/membership.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/address.h"
#include "common/base/failpoint.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "common/security/join_token.h"

namespace fedge {
namespace {

constexpr uint32_t kMaxUses = 100'000;
constexpr absl::Duration kMaxTokenLifetime = absl::Hours(24);
constexpr absl::Duration kKeepTokens = absl::Hours(24 * 7);  // after their end
constexpr absl::Duration kMaintenance = absl::Minutes(1);
constexpr absl::Duration kMaxOperatorLifetime = absl::Hours(24 * 365);
// Of one address. A secret of 160 bits needs no limit; the signatures made here do.
constexpr NodeQuotaLimits kAttempts{
    .requests_per_minute = 60, .open_streams = 0, .max_nodes = 100'000};

std::string Rough(absl::Duration duration) {
  return absl::FormatDuration(absl::Trunc(duration, absl::Seconds(1)));
}

}  // namespace

std::string RevocationSubject(const PeerIdentity& peer) {
  const bool is_node = peer.kind == PeerKind::kNode;
  return absl::StrCat(is_node ? "node/" : "operator/", peer.name);
}

Membership::Membership(MembershipOptions options)
    : options_(std::move(options)), attempts_(kAttempts) {}

absl::StatusOr<std::unique_ptr<Membership>> Membership::Open(MembershipOptions options) {
  std::unique_ptr<Membership> membership(new Membership(std::move(options)));
  const MembershipOptions& chosen = membership->options_;
  if (!chosen.env->Exists(chosen.dir)) {
    RETURN_IF_ERROR(chosen.env->CreateDirs(chosen.dir));
    RETURN_IF_ERROR(chosen.env->SetPermissions(chosen.dir, 0700));
  }
  ASSIGN_OR_RETURN(membership->store_, IdentityStore::Open(JoinPath(chosen.dir, "identity.db")));
  ASSIGN_OR_RETURN(const uint64_t members, membership->store_->CountMembers());
  ASSIGN_OR_RETURN(membership->authority_,
                   CertificateAuthority::Open({.dir = chosen.dir,
                                               .node_lifetime = chosen.node_lifetime,
                                               .may_create = members == 0,
                                               .env = chosen.env,
                                               .clock = chosen.clock}));
  {
    ASSIGN_OR_RETURN(const NameSet nodes, membership->store_->RevokedNodes());
    ASSIGN_OR_RETURN(const NameSet operators, membership->store_->RevokedOperators());
    absl::MutexLock lock(&membership->mutex_);
    for (const std::string& name : nodes) membership->revoked_.insert("node/" + name);
    for (const std::string& name : operators) membership->revoked_.insert("operator/" + name);
  }
  membership->maintainer_ = std::thread([raw = membership.get()] { raw->MaintainLoop(); });
  return membership;
}

Membership::~Membership() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (maintainer_.joinable()) maintainer_.join();
}

void Membership::MaintainLoop() {
  bool failed = false;
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kMaintenance)) return;
    }
    const absl::Status status = authority_->Maintain();
    if (!status.ok() && !failed) LogWarning("the server's certificates: ", status.message());
    failed = !status.ok();
  }
}

void Membership::set_address(std::string address) {
  absl::MutexLock lock(&mutex_);
  address_ = std::move(address);
}

absl::StatusOr<std::string> Membership::CreateToken(const TokenRequest& request,
                                                    TokenRecord* record) {
  if (request.uses < 1 || request.uses > kMaxUses) {
    return absl::InvalidArgumentError(
        absl::StrCat("token: ", request.uses, " uses, allowed are 1 to ", kMaxUses));
  }
  if (request.lifetime <= absl::ZeroDuration() || request.lifetime > kMaxTokenLifetime) {
    return absl::InvalidArgumentError(absl::StrCat("token: a life of ", Rough(request.lifetime),
                                                   ", allowed are up to ",
                                                   Rough(kMaxTokenLifetime)));
  }
  std::string address = request.address;
  if (address.empty()) {
    absl::MutexLock lock(&mutex_);
    address = address_;
  }
  RETURN_IF_ERROR(ParseHostPort(address, "token: the address").status());
  if (address.size() > 255) {
    return absl::InvalidArgumentError(
        absl::StrCat("token: the address has ", address.size(), " bytes, allowed are 255"));
  }
  if (!request.node_id.empty()) {
    RETURN_IF_ERROR(CheckPeerName(request.node_id));
    if (IsRevoked(request.node_id)) {
      return absl::FailedPreconditionError(
          absl::StrCat("node '", request.node_id, "' was revoked; choose another name"));
    }
  }
  ASSIGN_OR_RETURN(const JoinToken token, MakeJoinToken(authority_->serving_authority(), address));
  const absl::Time now = options_.clock->Now();
  RETURN_IF_ERROR(store_->ForgetTokens(now - kKeepTokens));
  *record = {.hash = token.Hash(),
             .node_id = request.node_id,
             .uses = request.uses,
             .created = now,
             .expires = now + request.lifetime};
  RETURN_IF_ERROR(store_->AddToken(*record));
  return token.Text();
}

absl::StatusOr<std::vector<TokenRecord>> Membership::ListTokens() {
  ASSIGN_OR_RETURN(std::vector<TokenRecord> tokens, store_->ListTokens());
  const absl::Time now = options_.clock->Now();
  tokens.erase(std::remove_if(tokens.begin(), tokens.end(),
                              [&](const TokenRecord& token) { return token.expires <= now; }),
               tokens.end());
  return tokens;
}

absl::Status Membership::RevokeToken(absl::string_view id) {
  ASSIGN_OR_RETURN(const std::vector<TokenRecord> tokens, store_->ListTokens());
  const TokenRecord* found = nullptr;
  size_t matches = 0;
  for (const TokenRecord& token : tokens) {
    if (id.empty() || !absl::StartsWith(JoinTokenId(token.hash), id)) continue;
    ++matches;
    found = &token;
  }
  if (matches != 1) {
    return absl::NotFoundError(
        absl::StrCat("token '", id, "': ", matches == 0 ? "no such token" : "several begin so",
                     "; the list of tokens names them"));
  }
  return store_->RevokeToken(found->hash);
}

absl::Status Membership::CheckToken(const TokenRecord& token,
                                    const v1::EnrollRequest& request) const {
  const absl::Time now = options_.clock->Now();
  if (token.revoked) return absl::PermissionDeniedError("token: was revoked; ask for another");
  if (token.expires <= now) {
    return absl::PermissionDeniedError(
        absl::StrCat("token: expired ", Rough(now - token.expires), " ago; ask for another"));
  }
  if (token.used >= token.uses) {
    return absl::PermissionDeniedError("token: was used already; each device needs one of its own");
  }
  if (!token.node_id.empty() && token.node_id != request.node_id()) {
    return absl::PermissionDeniedError(
        absl::StrCat("token: is for node '", token.node_id, "' only"));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::NodeCertificate> Membership::Certify(absl::string_view node,
                                                        const PublicKey& key,
                                                        MemberRecord* member) {
  ASSIGN_OR_RETURN(const Certificate certificate,
                   authority_->Issue(key, PeerKind::kNode, node, options_.node_lifetime));
  *member = {.node_id = std::string(node),
             .key = key.Fingerprint(),
             .serial = certificate.Serial(),
             .expires = certificate.not_after()};
  v1::NodeCertificate answer;
  answer.set_node_id(member->node_id);
  answer.set_certificate_pem(certificate.Pem());
  answer.set_authorities_pem(authority_->AuthoritiesPem());
  answer.set_server_time_ms(absl::ToUnixMillis(options_.clock->Now()));
  return answer;
}

absl::StatusOr<v1::NodeCertificate> Membership::Enroll(const v1::EnrollRequest& request,
                                                       absl::string_view peer_address) {
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(Annotate(attempts_.TakeRequest(peer_address, options_.clock->Monotonic()),
                             "enrolment from"));
  }
  if (request.token_secret().size() != kTokenSecretBytes) {
    return absl::InvalidArgumentError("token: its secret is not 20 bytes");
  }
  RETURN_IF_ERROR(CheckPeerName(request.node_id()));
  ASSIGN_OR_RETURN(const PublicKey key, ParseCertificateRequest(request.certificate_request()));
  const Digest hash = Sha256Of(request.token_secret());
  absl::MutexLock enrolling(&enroll_mutex_);
  ASSIGN_OR_RETURN(const std::optional<TokenRecord> token, store_->FindToken(hash));
  if (!token) {
    return absl::PermissionDeniedError(
        "token: this server did not make it, or has forgotten it since it expired");
  }
  if (IsRevoked(request.node_id())) {
    return absl::PermissionDeniedError(
        absl::StrCat("node '", request.node_id(), "' was revoked; join under another name"));
  }
  // The answer of the first time may have got lost.
  ASSIGN_OR_RETURN(const std::optional<std::string> before,
                   store_->FindUse(hash, key.Fingerprint()));
  const bool is_repeated =
      before == request.node_id() && !token->revoked && token->expires > options_.clock->Now();
  if (!is_repeated) {
    RETURN_IF_ERROR(CheckToken(*token, request));
    ASSIGN_OR_RETURN(const std::optional<MemberRecord> member,
                     store_->FindMember(request.node_id()));
    if (member && token->node_id.empty()) {
      return absl::AlreadyExistsError(
          absl::StrCat("node '", request.node_id(),
                       "' has joined before; choose another name (--node-id), or ask the "
                       "operator for a token made for this one"));
    }
  }
  MemberRecord member;
  ASSIGN_OR_RETURN(v1::NodeCertificate answer, Certify(request.node_id(), key, &member));
  RETURN_IF_ERROR(store_->Join(hash, member, options_.clock->Now()));
  RETURN_IF_ERROR(FEDGE_FAILPOINT("identity.joined"));
  return answer;
}

absl::StatusOr<v1::NodeCertificate> Membership::Renew(absl::string_view node,
                                                      const v1::RenewRequest& request) {
  ASSIGN_OR_RETURN(const PublicKey key, ParseCertificateRequest(request.certificate_request()));
  MemberRecord member;
  ASSIGN_OR_RETURN(v1::NodeCertificate answer, Certify(node, key, &member));
  RETURN_IF_ERROR(store_->Renew(member));
  // A revocation that came meanwhile wins: what was signed is refused by CheckPeer.
  return answer;
}

absl::StatusOr<Certificate> Membership::CertifyOperator(absl::string_view name, bool may_write,
                                                        absl::string_view request,
                                                        absl::Duration lifetime) {
  if (lifetime <= absl::ZeroDuration() || lifetime > kMaxOperatorLifetime) {
    return absl::InvalidArgumentError(absl::StrCat("certificate: a life of ", Rough(lifetime),
                                                   ", allowed are up to ",
                                                   Rough(kMaxOperatorLifetime)));
  }
  RETURN_IF_ERROR(CheckPeerName(name));
  if (IsRevokedOperator(name)) {
    return absl::FailedPreconditionError(
        absl::StrCat("operator '", name, "' was revoked; choose another name"));
  }
  ASSIGN_OR_RETURN(const PublicKey key, ParseCertificateRequest(request));
  const PeerKind kind = may_write ? PeerKind::kAdminWrite : PeerKind::kAdminRead;
  ASSIGN_OR_RETURN(const Certificate certificate, authority_->Issue(key, kind, name, lifetime));
  RETURN_IF_ERROR(store_->AddOperator({.serial = certificate.Serial(),
                                       .name = std::string(name),
                                       .may_write = may_write,
                                       .made = options_.clock->Now(),
                                       .expires = certificate.not_after()}));
  return certificate;
}

absl::StatusOr<std::vector<OperatorRecord>> Membership::ListOperators() {
  ASSIGN_OR_RETURN(std::vector<OperatorRecord> operators, store_->ListOperators());
  const absl::Time now = options_.clock->Now();
  operators.erase(std::remove_if(operators.begin(), operators.end(),
                                 [&](const OperatorRecord& one) { return one.expires <= now; }),
                  operators.end());
  return operators;
}

absl::Status Membership::RevokeNode(absl::string_view node, absl::string_view reason) {
  RETURN_IF_ERROR(CheckPeerName(node));
  RETURN_IF_ERROR(store_->RevokeNode(node, reason, options_.clock->Now()));
  Tell(absl::StrCat("node/", node));
  return absl::OkStatus();
}

absl::Status Membership::RevokeOperator(absl::string_view name) {
  RETURN_IF_ERROR(CheckPeerName(name));
  RETURN_IF_ERROR(store_->RevokeOperator(name, options_.clock->Now()));
  Tell(absl::StrCat("operator/", name));
  return absl::OkStatus();
}

void Membership::Tell(const std::string& subject) {
  std::vector<std::function<void(absl::string_view)>> listeners;
  {
    absl::MutexLock lock(&mutex_);
    revoked_.insert(subject);
    listeners = listeners_;
  }
  for (const auto& listener : listeners) listener(subject);
}

void Membership::AddRevocationListener(std::function<void(absl::string_view)> listener) {
  absl::MutexLock lock(&mutex_);
  listeners_.push_back(std::move(listener));
}

bool Membership::IsRevoked(absl::string_view node) {
  absl::MutexLock lock(&mutex_);
  return revoked_.count(absl::StrCat("node/", node)) > 0;
}

bool Membership::IsRevokedOperator(absl::string_view name) {
  absl::MutexLock lock(&mutex_);
  return revoked_.count(absl::StrCat("operator/", name)) > 0;
}

absl::Status Membership::CheckPeer(const Certificate& certificate) {
  const PeerIdentity& peer = certificate.identity();
  if (peer.federation != authority_->federation()) {
    return absl::UnauthenticatedError(
        absl::StrCat("certificate of ", peer.Uri(), ": of another federation"));
  }
  const absl::Time now = options_.clock->Now();
  if (certificate.not_after() < now) {
    return absl::UnauthenticatedError(absl::StrCat("certificate of ", peer.Uri(), ": expired ",
                                                   Rough(now - certificate.not_after()),
                                                   " ago; join again with a new token"));
  }
  if (peer.kind == PeerKind::kNode && IsRevoked(peer.name)) {
    return absl::UnauthenticatedError(
        absl::StrCat("node '", peer.name, "' was revoked by an operator"));
  }
  if (peer.kind != PeerKind::kNode && IsRevokedOperator(peer.name)) {
    return absl::UnauthenticatedError(
        absl::StrCat("operator '", peer.name, "' was revoked; another one can certify a new name"));
  }
  return absl::OkStatus();
}

}  // namespace fedge
