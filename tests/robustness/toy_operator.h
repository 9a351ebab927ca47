// An operator over the server's UNIX socket who repeats each order until the server has done it.
#ifndef FEDGE_TESTS_ROBUSTNESS_TOY_OPERATOR_H_
#define FEDGE_TESTS_ROBUSTNESS_TOY_OPERATOR_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/env.h"
#include "common/base/status.h"
#include "fedge/v1/admin.grpc.pb.h"
#include "fedge/v1/config.pb.h"

namespace fedge::robustness {

// Until `attempt` is true, at most for some 20 s: the case ends earlier. DeadlineExceeded: with the
// last error.
inline absl::Status Insist(const std::string& what,
                           const std::function<absl::StatusOr<bool>()>& attempt) {
  absl::Status last;
  for (int tries = 0; tries < 4000; ++tries) {
    const absl::StatusOr<bool> done = attempt();
    if (done.ok() && *done) return absl::OkStatus();
    if (!done.ok()) last = done.status();
    absl::SleepFor(absl::Milliseconds(5));
  }
  return absl::DeadlineExceededError(absl::StrCat(what, ": ", last.message()));
}

class ToyOperator {
 public:
  explicit ToyOperator(const v1::ServerConfig& config)
      : admin_(v1::AdminService::NewStub(
            grpc::CreateChannel(absl::StrCat("unix:", JoinPath(config.state_dir(), "admin.sock")),
                                grpc::InsecureChannelCredentials()))) {}

  // One attempt. Codes of the call.
  template <typename Request, typename Response>
  absl::Status Ask(const Request& request, Response* response,
                   grpc::Status (v1::AdminService::Stub::*call)(grpc::ClientContext*,
                                                                const Request&, Response*)) {
    grpc::ClientContext context;
    const grpc::Status status = ((*admin_).*call)(&context, request, response);
    if (status.ok()) return absl::OkStatus();
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }

  template <typename Request, typename Response>
  absl::Status Call(const std::string& what, const Request& request, Response* response,
                    grpc::Status (v1::AdminService::Stub::*call)(grpc::ClientContext*,
                                                                 const Request&, Response*)) {
    return Insist(what, [&]() -> absl::StatusOr<bool> {
      RETURN_IF_ERROR(Ask(request, response, call));
      return true;
    });
  }

 private:
  const std::unique_ptr<v1::AdminService::Stub> admin_;
};

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_TOY_OPERATOR_H_
