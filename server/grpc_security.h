// What gRPC needs of the federation's identities: TLS credentials of the listeners, the check of
// every call against the policy, and an end for the calls of who is revoked.
#ifndef FEDGE_SERVER_GRPC_SECURITY_H_
#define FEDGE_SERVER_GRPC_SECURITY_H_

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/server_interceptor.h>

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/access_policy.h"
#include "server/membership.h"

namespace fedge {

// TLS 1.3 with the server's certificate, followed when its file changes. But for enrolment, the
// peer must show a certificate of this federation that is valid and not revoked, before gRPC reads
// a byte of HTTP/2 from it. Each call is then checked again, and against the policy. `membership`
// must outlive the server.
std::shared_ptr<grpc::ServerCredentials> MakeTlsCredentials(ListenerKind listener,
                                                            Membership& membership);

// The node that the connection's certificate names; none on listeners without certificates.
std::optional<std::string> CertifiedNode(const grpc::ServerContextBase& context);

// The operator that it names: "alice"; empty: none.
std::string CertifiedOperator(const grpc::ServerContextBase& context);

// The calls of peers with certificates that are under way. Thread-safe; must outlive the server.
class LiveCalls {
 public:
  LiveCalls() = default;
  LiveCalls(const LiveCalls&) = delete;
  LiveCalls& operator=(const LiveCalls&) = delete;
  ~LiveCalls();

  // Ends the calls of a RevocationSubject with UNAUTHENTICATED; returns how many.
  size_t End(absl::string_view subject);

  // For ServerBuilder: enters each call, and takes it out when its status is sent.
  std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeInterceptors();

 private:
  class Interceptor;
  class Factory;
  void Add(const void* key, std::string subject, grpc_call* call);
  void Remove(const void* key);

  struct Call {
    std::string subject;
    grpc_call* call;  // with a reference
  };
  absl::Mutex mutex_;
  std::map<const void*, Call> calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fedge

#endif  // FEDGE_SERVER_GRPC_SECURITY_H_
