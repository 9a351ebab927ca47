// Every method x every kind of caller x every listener, over real TLS: what may be called, and that
// nothing else may.
#include "server/access_policy.h"

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <gtest/gtest.h>

#include <iomanip>
#include <iostream>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/base/status.h"
#include "fedge/v1/admin.pb.h"
#include "fedge/v1/federation.pb.h"
#include "fedge/v1/identity.pb.h"
#include "server/grpc_security.h"
#include "server/membership.h"
#include "server/peer_address.h"
#include "tests/server/temporary_dir.h"

namespace fedge {
namespace {

using testing::TemporaryDir;

constexpr ListenerKind kListeners[] = {ListenerKind::kFleet, ListenerKind::kEnrollment,
                                       ListenerKind::kAdmin};

template <typename T>
T Get(absl::StatusOr<T> result) {
  FEDGE_CHECK(result.ok(), result.status().message());
  return *std::move(result);
}

// All methods of our protocol files, and those gRPC's own services add to a listener.
std::set<std::string> AllMethods() {
  std::set<std::string> methods = {
      "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch",
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"};
  for (const google::protobuf::FileDescriptor* file :
       {v1::CheckInRequest::descriptor()->file(), v1::EnrollRequest::descriptor()->file(),
        v1::RunRef::descriptor()->file()}) {
    for (int i = 0; i < file->service_count(); ++i) {
      const google::protobuf::ServiceDescriptor* const service = file->service(i);
      for (int j = 0; j < service->method_count(); ++j) {
        methods.insert(absl::StrCat("/", service->full_name(), "/", service->method(j)->name()));
      }
    }
  }
  return methods;
}

// Answers anything that gets through with OK.
class Yes : public grpc::CallbackGenericService {
 public:
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    class Reactor : public grpc::ServerGenericBidiReactor {
     public:
      Reactor() { Finish(grpc::Status::OK); }
      void OnDone() override { delete this; }
    };
    return new Reactor;
  }
};

struct Caller {
  std::string name;
  std::string key, certificate;  // PEM; empty: none
};

std::shared_ptr<grpc::Channel> Connect(int port, const Caller& caller) {
  namespace tls = grpc::experimental;
  tls::TlsChannelCredentialsOptions options;
  options.set_verify_server_certs(false);
  options.set_check_call_host(false);
  options.set_certificate_verifier(std::make_shared<tls::NoOpCertificateVerifier>());
  if (!caller.key.empty()) {
    options.set_certificate_provider(std::make_shared<tls::StaticDataCertificateProvider>(
        std::vector<tls::IdentityKeyCertPair>{{caller.key, caller.certificate}}));
    options.watch_identity_key_cert_pairs();
  }
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port), tls::TlsCredentials(options),
                                   arguments);
}

std::string CallMethod(const std::shared_ptr<grpc::Channel>& channel, const std::string& method) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::ByteBuffer request, response;
  const grpc::Slice empty;
  request = grpc::ByteBuffer(&empty, 1);
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(&context, method, request, &queue);
  call->StartCall();
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  queue.Shutdown();
  switch (status.error_code()) {
    case grpc::StatusCode::UNAUTHENTICATED:
      return "unauthenticated";
    case grpc::StatusCode::PERMISSION_DENIED:
      return "denied";
    case grpc::StatusCode::UNAVAILABLE:
      return "no TLS";
    default:
      // The answer has no message: a call that got through fails behind the listener or is OK.
      return "yes";
  }
}

class AccessPolicyTest : public ::testing::Test {
 protected:
  AccessPolicyTest() {
    membership_ = Get(Membership::Open(
        {.dir = dir_.File("identity"), .env = Env::Posix(), .clock = Clock::Real()}));
    for (const ListenerKind listener : kListeners) {
      grpc::ServerBuilder builder;
      int& port = ports_[listener];
      builder.AddListeningPort("127.0.0.1:0", MakeTlsCredentials(listener, *membership_), &port);
      services_.push_back(std::make_unique<Yes>());  // one server each
      builder.RegisterCallbackGenericService(services_.back().get());
      servers_.push_back(builder.BuildAndStart());
    }
    const PrivateKey key = Get(PrivateKey::Generate());
    const absl::Time now = Clock::Real()->Now();
    const Validity day{now - absl::Hours(24), now + absl::Hours(24)};
    const CertificateIssuer foreign =
        Get(CertificateIssuer::Create(membership_->authority().federation(), day));
    const auto issue = [&](PeerKind kind, absl::string_view name, absl::Duration lifetime) {
      return Get(membership_->authority().Issue(key.public_key(), kind, name, lifetime)).Pem();
    };
    FEDGE_CHECK(membership_->RevokeNode("revoked", "test").ok());
    callers_ = {
        {"no certificate", "", ""},
        {"foreign CA", key.Pem(),
         Get(foreign.Issue(key.public_key(), PeerKind::kNode, "node", day)).Pem()},
        {"expired", key.Pem(), issue(PeerKind::kNode, "node", -absl::Hours(1))},
        {"revoked", key.Pem(), issue(PeerKind::kNode, "revoked", absl::Hours(1))},
        {"node", key.Pem(), issue(PeerKind::kNode, "node", absl::Hours(1))},
        {"admin-read", key.Pem(), issue(PeerKind::kAdminRead, "ops", absl::Hours(1))},
        {"admin-write", key.Pem(), issue(PeerKind::kAdminWrite, "ops", absl::Hours(1))},
    };
  }

  TemporaryDir dir_;
  std::unique_ptr<Membership> membership_;
  std::vector<std::unique_ptr<Yes>> services_;
  std::map<ListenerKind, int> ports_;
  std::vector<std::unique_ptr<grpc::Server>> servers_;
  std::vector<Caller> callers_;
};

TEST_F(AccessPolicyTest, EveryMethodHasExactlyTheCallersItShouldHave) {
  std::cout << std::left << std::setw(46) << "method";
  for (const Caller& caller : callers_) std::cout << std::setw(16) << caller.name;
  std::cout << "\n";
  std::map<std::pair<ListenerKind, std::string>, std::shared_ptr<grpc::Channel>> channels;
  for (const ListenerKind listener : kListeners) {
    for (const Caller& caller : callers_) {
      channels[{listener, caller.name}] = Connect(ports_[listener], caller);
    }
  }
  std::set<std::string> methods = AllMethods();
  methods.insert("/fedge.v1.FederationService/NoSuchMethod");
  for (const ListenerKind listener : kListeners) {
    for (const std::string& method : methods) {
      const bool is_admin = absl::StartsWith(method, "/fedge.v1.AdminService/");
      const bool reads = absl::EndsWith(method, "List") || absl::EndsWith(method, "Show") ||
                         absl::EndsWith(method, "Watch") || absl::EndsWith(method, "Logs") ||
                         absl::EndsWith(method, "Fetch");
      const bool is_health = method == "/grpc.health.v1.Health/Check";
      const bool is_reflection = absl::StrContains(method, "/grpc.reflection.");
      const bool is_unknown = absl::EndsWith(method, "NoSuchMethod");
      const bool is_fleets =
          !is_unknown && (absl::StartsWith(method, "/fedge.v1.FederationService/") ||
                          absl::StartsWith(method, "/fedge.v1.IdentityService/") || is_health);
      std::string line;
      bool open = false;
      for (const Caller& caller : callers_) {
        const bool is_admin_caller = absl::StartsWith(caller.name, "admin");
        std::string expected = "denied";
        if (listener == ListenerKind::kEnrollment) {
          if (method == "/fedge.v1.EnrollmentService/Enroll" || is_health) expected = "yes";
        } else if (listener == ListenerKind::kFleet) {
          if (caller.name != "node") expected = "no TLS";
          if (caller.name == "node" && is_fleets) expected = "yes";
        } else if (!is_admin_caller) {
          expected = "no TLS";
        } else if ((is_admin && (reads || caller.name == "admin-write")) || is_health ||
                   is_reflection) {
          expected = absl::StartsWith(method, "/grpc.health.v1.Health/Watch") ? "denied" : "yes";
        }
        const std::string got = CallMethod(channels[{listener, caller.name}], method);
        EXPECT_EQ(got, expected) << method << " on " << ListenerName(listener) << " by "
                                 << caller.name
                                 << "; a new method needs an entry in server/access_policy.cc";
        open = open || got == "yes";
        line += absl::StrCat(got, std::string(got.size() < 16 ? 16 - got.size() : 1, ' '));
      }
      if (!open) continue;
      const std::string name =
          absl::StrCat(ListenerName(listener), " ", method.substr(method.rfind('.') + 1));
      std::cout << std::left << std::setw(46) << name << line << "\n";
    }
  }
}

TEST_F(AccessPolicyTest, TheTableHasEveryMethodAndNoOther) {
  const std::set<std::string> methods = AllMethods();
  std::set<std::string> in_table;
  for (const MethodPolicy& policy : MethodPolicies()) {
    in_table.insert(std::string(policy.path));
    EXPECT_EQ(methods.count(std::string(policy.path)), 1u) << policy.path << " is of no service";
    EXPECT_TRUE(policy.anyone || policy.node || policy.admin_read || policy.admin_write);
    EXPECT_TRUE(!policy.admin_read || policy.admin_write) << "who may write may read";
  }
  for (const std::string& method : methods) {
    // Nobody may hold a health check open.
    if (method == "/grpc.health.v1.Health/Watch") continue;
    EXPECT_EQ(in_table.count(method), 1u)
        << method << " has no entry in server/access_policy.cc: nobody may call it over TLS";
  }
}

TEST(PeerAddressTest, IsAHostOrOneCustomersNetwork) {
  EXPECT_EQ(PeerAddress("ipv4:10.0.0.7:5123"), "ipv4:10.0.0.7");
  EXPECT_EQ(PeerAddress("ipv6:%5B2001:db8:1:2:3::1%5D:443"), "ipv6:2001:db8:1:2::/64");
  EXPECT_EQ(PeerAddress("ipv6:[2001:db8:1:2::9]:443"), "ipv6:2001:db8:1:2::/64");
}

}  // namespace
}  // namespace fedge
