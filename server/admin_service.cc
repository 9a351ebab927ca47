#include "server/admin_service.h"

#include <grpcpp/grpcpp.h>

#include "fedge/v1/admin.grpc.pb.h"
#include "server/admin_context.h"

namespace fedge {
namespace {

class AdminService final : public v1::AdminService::Service {
 public:
  explicit AdminService(const AdminContext& context) : context_(context) {}

 private:
  [[maybe_unused]] const AdminContext context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAdminService(const AdminContext& context) {
  return std::make_unique<AdminService>(context);
}

}  // namespace fedge
