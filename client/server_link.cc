#include "client/server_link.h"

#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "client/grpc_identity.h"
#include "client/node_identity.h"
#include "client/server_key.h"
#include "common/base/address.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "common/security/certificate_issuer.h"

namespace fedge {
namespace {

constexpr absl::Duration kClockTolerance = absl::Minutes(5);
constexpr absl::Duration kRenewalPause = absl::Minutes(1);  // after an attempt that failed

// "clock is 24.0 hours ahead of the server's", or nothing.
std::string ClockComplaint(absl::Duration ahead) {
  const absl::Duration off = absl::AbsDuration(ahead);
  if (off <= kClockTolerance) return "";
  const bool minutes = off < absl::Hours(1);
  return absl::StrFormat(
      "this device's clock is %.1f %s %s the server's; it works all the same, but mend it "
      "(timedatectl set-ntp true): logs and quiet hours go by it",
      minutes ? absl::ToDoubleMinutes(off) : absl::ToDoubleHours(off),
      minutes ? "minutes" : "hours", ahead > absl::ZeroDuration() ? "ahead of" : "behind");
}

absl::Duration Ahead(Clock& clock, int64_t server_time_ms) {
  return clock.Now() - absl::FromUnixMillis(server_time_ms);
}

// Thread-safe: a call takes the inner link of the moment and keeps it to its end.
class RenewingLink : public FederationLink {
 public:
  RenewingLink(IdentityFolder folder, NodeIdentity identity, const GrpcLinkOptions& options,
               Clock* clock)
      : folder_(std::move(folder)),
        options_(options),
        clock_(clock),
        identity_(std::move(identity)) {
    absl::MutexLock lock(&mutex_);
    Connect();
  }

  absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request) override {
    RenewIfDue();
    absl::StatusOr<v1::CheckInResponse> response = Explain(Inner()->CheckIn(request));
    if (response.ok() && response->server_time_ms() != 0) NoteTime(response->server_time_ms());
    return response;
  }
  absl::Status Download(const v1::DownloadRequest& request, const ChunkSink& sink) override {
    return Explain(Inner()->Download(request, sink));
  }
  absl::StatusOr<v1::QueryUploadResponse> QueryUpload(
      const v1::QueryUploadRequest& request) override {
    RenewIfDue();
    return Explain(Inner()->QueryUpload(request));
  }
  absl::StatusOr<v1::UploadReceipt> Upload(const v1::UploadId& id, const v1::TaskMetrics& metrics,
                                           absl::string_view bytes, uint64_t offset) override {
    return Explain(Inner()->Upload(id, metrics, bytes, offset));
  }
  absl::Status Report(const v1::ReportRequest& request) override {
    return Explain(Inner()->Report(request));
  }
  void Rest() override { Inner()->Rest(); }
  void Interrupt() override {
    absl::MutexLock lock(&mutex_);
    interrupted_ = true;
    inner_->Interrupt();
  }

 private:
  void Connect() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    check_ = std::make_shared<ServerCheck>();
    inner_ = ConnectGrpcAs(identity_, check_, options_);
    if (interrupted_) inner_->Interrupt();
  }

  std::shared_ptr<FederationLink> Inner() {
    absl::MutexLock lock(&mutex_);
    return inner_;
  }

  // The identity to renew, if it is time; then for a while nothing.
  std::optional<NodeIdentity> TakeDue() {
    absl::MutexLock lock(&mutex_);
    const absl::Duration now = clock_->Monotonic();
    // With the server's idea of the time, as far as it is known.
    if (clock_->Now() - clock_ahead_ < RenewalTime(identity_.certificate) ||
        (last_attempt_ && now - *last_attempt_ < kRenewalPause)) {
      return std::nullopt;
    }
    last_attempt_ = now;
    return identity_;
  }

  // No lock is held while the server is asked: an Interrupt must not wait for it.
  void RenewIfDue() {
    const std::optional<NodeIdentity> due = TakeDue();
    if (!due) return;
    absl::StatusOr<NodeIdentity> renewed = Renew(*due);
    if (renewed.ok()) {
      LogInfo("node certificate renewed until ",
              absl::FormatTime(renewed->certificate.not_after(), absl::UTCTimeZone()));
      absl::MutexLock lock(&mutex_);
      identity_ = *std::move(renewed);
      last_attempt_.reset();
      Connect();
    } else if (!absl::IsUnavailable(renewed.status())) {  // else the call itself says so
      LogWarning("cannot renew the node's certificate: ", renewed.status().message());
    }
  }

  absl::StatusOr<NodeIdentity> Renew(const NodeIdentity& identity) {
    ASSIGN_OR_RETURN(const PrivateKey key, PrivateKey::Generate());
    v1::RenewRequest request;
    ASSIGN_OR_RETURN(*request.mutable_certificate_request(), MakeCertificateRequest(key));
    ASSIGN_OR_RETURN(const v1::NodeCertificate issued, RenewOverTls(identity, request));
    return folder_.Store(key, issued, identity.server);
  }

  void NoteTime(int64_t server_time_ms) {
    const absl::Duration ahead = Ahead(*clock_, server_time_ms);
    absl::MutexLock lock(&mutex_);
    const bool is_news = absl::AbsDuration(ahead - clock_ahead_) > kClockTolerance;
    clock_ahead_ = ahead;
    if (!is_news) return;
    const std::string complaint = ClockComplaint(ahead);
    if (complaint.empty()) {
      LogInfo("this device's clock agrees with the server's again");
    } else {
      LogWarning(complaint);
    }
  }

  // A server that TLS refuses, or that refuses this node at TLS, is just "not there" for gRPC.
  absl::Status Explain(const absl::Status& status) {
    if (!absl::IsUnavailable(status)) return status;
    absl::MutexLock lock(&mutex_);
    const absl::Status server = check_->Get();
    if (absl::IsUnauthenticated(server)) {
      return absl::UnauthenticatedError(
          absl::StrCat(identity_.server, ": ", server.message(), "; join again with a new token"));
    }
    const absl::Time end = identity_.certificate.not_after();
    if (clock_->Now() - clock_ahead_ > end) {
      return absl::UnauthenticatedError(
          absl::StrCat("node '", identity_.node_id(), "': its certificate expired on ",
                       absl::FormatTime("%Y-%m-%d %H:%M UTC", end, absl::UTCTimeZone()),
                       " (this device was away for too long, or its clock is wrong); ask for a ",
                       "token of this node and join again"));
    }
    if (!server.ok()) return status;
    return absl::UnavailableError(absl::StrCat(
        status.message(), "; the server was there and ended the connection: if that goes on, ask ",
        "its operator whether node '", identity_.node_id(), "' was revoked"));
  }
  template <typename T>
  absl::StatusOr<T> Explain(absl::StatusOr<T> result) {
    if (result.ok()) return result;
    return Explain(result.status());
  }

  IdentityFolder folder_;
  const GrpcLinkOptions options_;
  Clock* const clock_;
  absl::Mutex mutex_;
  NodeIdentity identity_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<FederationLink> inner_ ABSL_GUARDED_BY(mutex_);
  bool interrupted_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<ServerCheck> check_ ABSL_GUARDED_BY(mutex_);
  absl::Duration clock_ahead_ ABSL_GUARDED_BY(mutex_) = absl::ZeroDuration();
  std::optional<absl::Duration> last_attempt_ ABSL_GUARDED_BY(mutex_);
};

absl::StatusOr<HostPort> EnrollmentAddress(const JoinOptions& options, const JoinToken& token) {
  absl::string_view address = options.url;
  if (address.empty()) address = token.address;
  if (!absl::ConsumePrefix(&address, "https://") && address.find("://") != address.npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("address \"", address, "\": must be https://host:port"));
  }
  absl::ConsumeSuffix(&address, "/");
  return ParseHostPort(address, "address");
}

absl::StatusOr<ServerLink> OpenInsecure(const ServerLinkOptions& options) {
  ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(options.server, "server address"));
  if (!IsLoopback(address.host)) {
    return absl::InvalidArgumentError(
        absl::StrCat("server address \"", options.server, "\": --insecure is for a server on this ",
                     "machine (127.0.0.1, [::1] or localhost); for others: fedge-client join"));
  }
  ServerLink result{.node_id = options.node_id, .server = options.server};
  ASSIGN_OR_RETURN(result.link, ConnectGrpc(options.server, options.grpc));
  return result;
}

}  // namespace

absl::StatusOr<JoinedNode> JoinFederation(const JoinOptions& options, Env& env, Clock& clock) {
  ASSIGN_OR_RETURN(const JoinToken token, ParseJoinToken(options.token));
  ASSIGN_OR_RETURN(const HostPort address, EnrollmentAddress(options, token));
  RETURN_IF_ERROR(CheckPeerName(options.node_id));
  IdentityFolder folder(options.state_dir, &env);
  if (const absl::StatusOr<NodeIdentity> known = folder.Load(); known.ok()) {
    const absl::Time end = known->certificate.not_after();
    if (clock.Now() < end) {
      return absl::AlreadyExistsError(
          absl::StrCat(options.state_dir, ": has joined already, as node '", known->node_id(),
                       "' of ", known->server, "; remove its folder identity/ to join anew"));
    }
  } else if (!absl::IsNotFound(known.status())) {
    LogWarning(known.status().message());
  }
  ASSIGN_OR_RETURN(const PrivateKey key, folder.JoiningKey());
  v1::EnrollRequest request;
  request.set_token_secret(token.secret);
  request.set_node_id(options.node_id);
  ASSIGN_OR_RETURN(*request.mutable_certificate_request(), MakeCertificateRequest(key));
  ASSIGN_OR_RETURN(const v1::EnrollResponse response,
                   EnrollOverTls(address.Text(), token, request));
  if (!response.manifest_key().empty()) {
    RETURN_IF_ERROR(
        KeptServerKeys(options.state_dir, &env).Write(options.node_id, response.manifest_key()));
  }
  const HostPort fleet{address.host, static_cast<int>(response.fleet_port())};
  ASSIGN_OR_RETURN(const NodeIdentity identity,
                   folder.Store(key, response.certificate(), fleet.Text()));
  return JoinedNode{identity.node_id(), identity.server,
                    ClockComplaint(Ahead(clock, response.certificate().server_time_ms()))};
}

absl::StatusOr<ServerLink> OpenServerLink(const ServerLinkOptions& options, Env& env,
                                          Clock& clock) {
  if (options.insecure) return OpenInsecure(options);
  IdentityFolder folder(options.state_dir, &env);
  ASSIGN_OR_RETURN(NodeIdentity identity, folder.Load());
  if (!options.node_id.empty() && options.node_id != identity.node_id()) {
    return absl::InvalidArgumentError(absl::StrCat("node id \"", options.node_id,
                                                   "\": this device has joined as '",
                                                   identity.node_id(), "'; leave --node-id out"));
  }
  if (!options.server.empty()) {
    ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(options.server, "server address"));
    identity.server = address.Text();
  }
  ServerLink result{.node_id = identity.node_id(), .server = identity.server};
  result.link =
      std::make_unique<RenewingLink>(std::move(folder), std::move(identity), options.grpc, &clock);
  return result;
}

}  // namespace fedge
