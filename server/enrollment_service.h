// fedge.v1.EnrollmentService and fedge.v1.IdentityService over gRPC: messages in, Membership called
// on a WorkQueue, answers out. No decision is made here.
#ifndef FEDGE_SERVER_ENROLLMENT_SERVICE_H_
#define FEDGE_SERVER_ENROLLMENT_SERVICE_H_

#include <functional>
#include <memory>

namespace grpc {
class Service;
}  // namespace grpc

namespace fedge {

class ConnectionGate;
class Membership;
class WorkQueue;

// `fleet_port` is asked at each enrolment. All that is given must outlive the gRPC server; `gate`
// (may be null) is told of the calls under way.
std::unique_ptr<grpc::Service> MakeEnrollmentService(Membership& membership, WorkQueue& queue,
                                                     std::string manifest_key,
                                                     std::function<int()> fleet_port,
                                                     ConnectionGate* gate);
std::unique_ptr<grpc::Service> MakeIdentityService(Membership& membership, WorkQueue& queue,
                                                   ConnectionGate* gate);

}  // namespace fedge

#endif  // FEDGE_SERVER_ENROLLMENT_SERVICE_H_
