#include "server/admin_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "fedge/v1/admin.grpc.pb.h"
#include "server/admin_context.h"
#include "server/admin_models.h"
#include "server/admin_nodes.h"
#include "server/admin_runs.h"
#include "server/admin_tokens.h"
#include "server/event_log.h"
#include "server/grpc_security.h"

namespace fedge {
namespace {

// How long a stream waits for news before it looks whether its caller is still there.
constexpr absl::Duration kLook = absl::Milliseconds(250);

grpc::Status ToGrpc(const absl::Status& status) {
  // absl's codes have the numbers of gRPC's.
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message()));
}

class AdminService final : public v1::AdminService::Service {
 public:
  AdminService(const AdminContext& context, const std::atomic<bool>& stopping)
      : context_(context), stopping_(stopping) {}

#define FEDGE_ADMIN_METHOD(Name, Request, Response)                                                \
  grpc::Status Name(grpc::ServerContext* call, const v1::Request* request, v1::Response* response) \
      override {                                                                                   \
    return Assign(::fedge::Name(Context(*call), *request), response);                              \
  }
  FEDGE_ADMIN_METHOD(RunCreate, RunCreateRequest, RunCreateResponse)
  FEDGE_ADMIN_METHOD(RunClone, RunCloneRequest, RunCreateResponse)
  FEDGE_ADMIN_METHOD(RunList, RunListRequest, RunListResponse)
  FEDGE_ADMIN_METHOD(RunShow, RunShowRequest, RunShowResponse)
  FEDGE_ADMIN_METHOD(RunPause, RunRef, RunInfo)
  FEDGE_ADMIN_METHOD(RunResume, RunRef, RunInfo)
  FEDGE_ADMIN_METHOD(RunStop, RunRef, RunInfo)
  FEDGE_ADMIN_METHOD(NodeList, NodeListRequest, NodeListResponse)
  FEDGE_ADMIN_METHOD(NodeShow, NodeShowRequest, NodeShowResponse)
  FEDGE_ADMIN_METHOD(ModelList, ModelRef, ModelListResponse)
  FEDGE_ADMIN_METHOD(ModelShow, ModelRef, ModelInfo)
  FEDGE_ADMIN_METHOD(ModelPromote, ModelDecision, ModelInfo)
  FEDGE_ADMIN_METHOD(ModelRollback, ModelDecision, ModelInfo)
  FEDGE_ADMIN_METHOD(AuditList, AuditListRequest, AuditListResponse)
#undef FEDGE_ADMIN_METHOD

#define FEDGE_MEMBERSHIP_METHOD(Name)                                       \
  grpc::Status Name(grpc::ServerContext*, const v1::Name##Request* request, \
                    v1::Name##Response* response) override {                \
    return Assign(::fedge::Name(context_.membership, *request), response);  \
  }
  FEDGE_MEMBERSHIP_METHOD(TokenCreate)
  FEDGE_MEMBERSHIP_METHOD(TokenList)
  FEDGE_MEMBERSHIP_METHOD(TokenRevoke)
  FEDGE_MEMBERSHIP_METHOD(NodeRevoke)
  FEDGE_MEMBERSHIP_METHOD(AuthorityRotate)
  FEDGE_MEMBERSHIP_METHOD(OperatorCertify)
  FEDGE_MEMBERSHIP_METHOD(OperatorRevoke)
  FEDGE_MEMBERSHIP_METHOD(OperatorList)
#undef FEDGE_MEMBERSHIP_METHOD

  grpc::Status ModelFetch(grpc::ServerContext*, const v1::ModelRef* request,
                          grpc::ServerWriter<v1::ModelPart>* writer) override {
    return ToGrpc(::fedge::ModelFetch(
        context_, *request, [&](const v1::ModelPart& part) { return writer->Write(part); }));
  }

  grpc::Status RunWatch(grpc::ServerContext* call, const v1::RunRef* request,
                        grpc::ServerWriter<v1::RunInfo>* writer) override {
    v1::LogsRequest of_run;
    of_run.set_run_id(request->run_id());
    std::string last;
    while (!stopping_ && !call->IsCancelled()) {
      const uint64_t seen = context_.events->last_sequence();
      const absl::StatusOr<v1::RunInfo> info = RunNow(context_, *request);
      if (!info.ok()) return ToGrpc(info.status());
      std::string now = info->SerializeAsString();
      if (now != last && !writer->Write(*info)) break;
      last = std::move(now);
      context_.events->After(seen, of_run, kLook);
    }
    return grpc::Status::OK;
  }

  grpc::Status Logs(grpc::ServerContext* call, const v1::LogsRequest* request,
                    grpc::ServerWriter<v1::Event>* writer) override {
    uint64_t seen = context_.events->last_sequence();
    for (const v1::Event& event : context_.events->Newest(*request, request->last())) {
      if (!writer->Write(event)) return grpc::Status::OK;
      seen = std::max(seen, event.sequence());
    }
    while (request->follow() && !stopping_ && !call->IsCancelled()) {
      for (const v1::Event& event : context_.events->After(seen, *request, kLook)) {
        if (!writer->Write(event)) return grpc::Status::OK;
        seen = event.sequence();
      }
    }
    return grpc::Status::OK;
  }

 private:
  AdminContext Context(const grpc::ServerContext& call) const {
    AdminContext context = context_;
    context.caller = CertifiedOperator(call);
    return context;
  }

  template <typename T>
  static grpc::Status Assign(absl::StatusOr<T> result, T* response) {
    if (result.ok()) *response = *std::move(result);
    return ToGrpc(result.status());
  }

  const AdminContext context_;
  const std::atomic<bool>& stopping_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAdminService(const AdminContext& context,
                                                const std::atomic<bool>& stopping) {
  return std::make_unique<AdminService>(context, stopping);
}

}  // namespace fedge
