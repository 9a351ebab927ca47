// fedge.v1.FederationService over gRPC's callback API: messages in, DeviceRequests called on a
// WorkQueue, answers out. No decision is made here.
#ifndef FEDGE_SERVER_FEDERATION_SERVICE_H_
#define FEDGE_SERVER_FEDERATION_SERVICE_H_

#include <memory>

namespace grpc {
class Service;
}  // namespace grpc

namespace fedge {

class DeviceRequests;
class WorkQueue;

// `requests` and `queue` must outlive the gRPC server that runs the service.
std::unique_ptr<grpc::Service> MakeFederationService(DeviceRequests& requests, WorkQueue& queue);

}  // namespace fedge

#endif  // FEDGE_SERVER_FEDERATION_SERVICE_H_
