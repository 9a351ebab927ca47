// Serves metrics over HTTP for Prometheus.
#ifndef FEDGE_SERVER_METRICS_LISTENER_H_
#define FEDGE_SERVER_METRICS_LISTENER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace prometheus {
class Collectable;
class Exposer;
}  // namespace prometheus

namespace fedge {

// Plain HTTP without authentication: for this machine, or a network that only operators reach.
class MetricsListener {
 public:
  // Serves `metrics` as GET /metrics on `address` (host:port, port 0 picks one). InvalidArgument:
  // the address; FailedPrecondition: it cannot be listened on.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(
      const std::string& address, std::shared_ptr<prometheus::Collectable> metrics);
  ~MetricsListener();

  int port() const;

 private:
  MetricsListener(std::shared_ptr<prometheus::Collectable> metrics,
                  std::unique_ptr<prometheus::Exposer> exposer);

  std::shared_ptr<prometheus::Collectable> metrics_;  // the exposer keeps a weak one
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_METRICS_LISTENER_H_
