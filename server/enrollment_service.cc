#include "server/enrollment_service.h"

#include <grpcpp/grpcpp.h>

#include <string>
#include <utility>

#include "common/base/status.h"
#include "fedge/v1/identity.grpc.pb.h"
#include "server/connection_gate.h"
#include "server/grpc_security.h"
#include "server/membership.h"
#include "server/peer_address.h"
#include "server/work_queue.h"

namespace fedge {
namespace {

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

// Answers with what `function` says, on a worker. Request and response live until then.
template <typename Function>
grpc::ServerUnaryReactor* Run(WorkQueue& queue, ConnectionGate* gate,
                              grpc::CallbackServerContext* context, Function function) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  auto work = std::make_shared<ConnectionGate::Work>(gate, context->peer());
  const bool scheduled =
      queue.Schedule([reactor, work = std::move(work), function = std::move(function)] {
        reactor->Finish(ToGrpc(function()));
      });
  if (!scheduled) {
    reactor->Finish(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                                 "the server has too many requests waiting; come back later"));
  }
  return reactor;
}

class EnrollmentService final : public v1::EnrollmentService::CallbackService {
 public:
  EnrollmentService(Membership& membership, WorkQueue& queue, std::string manifest_key,
                    std::function<int()> fleet_port, ConnectionGate* gate)
      : membership_(membership),
        queue_(queue),
        gate_(gate),
        manifest_key_(std::move(manifest_key)),
        fleet_port_(std::move(fleet_port)) {}

  grpc::ServerUnaryReactor* Enroll(grpc::CallbackServerContext* context,
                                   const v1::EnrollRequest* request,
                                   v1::EnrollResponse* response) override {
    return Run(queue_, gate_, context,
               [this, request, response, peer = PeerAddress(context->peer())]() -> absl::Status {
                 ASSIGN_OR_RETURN(*response->mutable_certificate(),
                                  membership_.Enroll(*request, peer));
                 response->set_fleet_port(static_cast<uint32_t>(fleet_port_()));
                 response->set_manifest_key(manifest_key_);
                 return absl::OkStatus();
               });
  }

 private:
  Membership& membership_;
  WorkQueue& queue_;
  ConnectionGate* const gate_;
  const std::string manifest_key_;
  const std::function<int()> fleet_port_;
};

class IdentityService final : public v1::IdentityService::CallbackService {
 public:
  IdentityService(Membership& membership, WorkQueue& queue, ConnectionGate* gate)
      : membership_(membership), queue_(queue), gate_(gate) {}

  grpc::ServerUnaryReactor* Renew(grpc::CallbackServerContext* context,
                                  const v1::RenewRequest* request,
                                  v1::RenewResponse* response) override {
    return Run(queue_, gate_, context,
               [this, request, response, node = CertifiedNode(*context)]() -> absl::Status {
                 if (!node) return absl::UnauthenticatedError("renewal needs a certificate");
                 ASSIGN_OR_RETURN(*response->mutable_certificate(),
                                  membership_.Renew(*node, *request));
                 return absl::OkStatus();
               });
  }

 private:
  Membership& membership_;
  WorkQueue& queue_;
  ConnectionGate* const gate_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeEnrollmentService(Membership& membership, WorkQueue& queue,
                                                     std::string manifest_key,
                                                     std::function<int()> fleet_port,
                                                     ConnectionGate* gate) {
  return std::make_unique<EnrollmentService>(membership, queue, std::move(manifest_key),
                                             std::move(fleet_port), gate);
}

std::unique_ptr<grpc::Service> MakeIdentityService(Membership& membership, WorkQueue& queue,
                                                   ConnectionGate* gate) {
  return std::make_unique<IdentityService>(membership, queue, gate);
}

}  // namespace fedge
