#include "server/metrics_listener.h"

#include <exception>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/address.h"
#include "common/base/status.h"
#include "prometheus/collectable.h"
#include "prometheus/exposer.h"

namespace fedge {

MetricsListener::MetricsListener(std::shared_ptr<prometheus::Collectable> metrics,
                                 std::unique_ptr<prometheus::Exposer> exposer)
    : metrics_(std::move(metrics)), exposer_(std::move(exposer)) {}

MetricsListener::~MetricsListener() = default;

int MetricsListener::port() const {
  const std::vector<int> ports = exposer_->GetListeningPorts();
  return ports.empty() ? 0 : ports.front();
}

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(
    const std::string& address, std::shared_ptr<prometheus::Collectable> metrics) {
  RETURN_IF_ERROR(ParseHostPort(address, "metrics_listen:", 0).status());
  // CivetWeb throws what it cannot do, without saying why.
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(std::vector<std::string>{
        "listening_ports", address, "num_threads", "2", "request_timeout_ms", "5000"});
    exposer->RegisterCollectable(metrics);
    return std::unique_ptr<MetricsListener>(
        new MetricsListener(std::move(metrics), std::move(exposer)));
  } catch (const std::exception&) {
    return absl::FailedPreconditionError(
        absl::StrCat("metrics_listen: cannot listen on ", address,
                     ": is the port taken, the address of this machine? Choose another"));
  }
}

}  // namespace fedge
