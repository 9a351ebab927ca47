// fedge.v1.AdminService over gRPC: messages in, the functions of admin_*.h called, answers out. No
// decision is made here.
#ifndef FEDGE_SERVER_ADMIN_SERVICE_H_
#define FEDGE_SERVER_ADMIN_SERVICE_H_

#include <atomic>
#include <memory>

namespace grpc {
class Service;
}  // namespace grpc

namespace fedge {

struct AdminContext;

// Its methods block, each on a thread of gRPC's: it is for operators, not for devices. Streams end
// soon after `stopping` is set. It and what `context` points to must outlive the gRPC server that
// runs the service.
std::unique_ptr<grpc::Service> MakeAdminService(const AdminContext& context,
                                                const std::atomic<bool>& stopping);

}  // namespace fedge

#endif  // FEDGE_SERVER_ADMIN_SERVICE_H_
