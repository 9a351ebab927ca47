// fedge.v1.FederationService over gRPC's callback API: messages in, DeviceRequests called on a
// WorkQueue, answers out. No decision is made here.
#ifndef FEDGE_SERVER_FEDERATION_SERVICE_H_
#define FEDGE_SERVER_FEDERATION_SERVICE_H_

#include <memory>

namespace grpc {
class Service;
}  // namespace grpc

namespace fedge {

class ConnectionGate;
class DeviceRequests;
class WorkQueue;

// All must outlive the gRPC server that runs the service. `gate` (may be null) is told of the calls
// under way.
std::unique_ptr<grpc::Service> MakeFederationService(DeviceRequests& requests, WorkQueue& queue,
                                                     ConnectionGate* gate);

}  // namespace fedge

#endif  // FEDGE_SERVER_FEDERATION_SERVICE_H_
