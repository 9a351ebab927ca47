// The fleet as Prometheus sees it: what AdminService knows of the runs, and how often each kind of
// event happened, read anew at each scrape. Nothing is counted twice and nothing has to be told.
#ifndef FEDGE_SERVER_FLEET_METRICS_H_
#define FEDGE_SERVER_FLEET_METRICS_H_

#include <prometheus/collectable.h>

#include <string>
#include <vector>

#include "server/admin_context.h"

namespace fedge {

// Thread-safe; blocks on the store for milliseconds.
class FleetMetrics : public prometheus::Collectable {
 public:
  // `context` must outlive this object. `state_dir` is the folder whose free space is shown.
  FleetMetrics(const AdminContext& context, std::string state_dir)
      : context_(context), state_dir_(std::move(state_dir)) {}

  // Names begin with "fedge_", run ids are the label "run", bytes and seconds are base units.
  // A store that does not answer shows as fedge_healthy 0, without the families of the runs.
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const AdminContext context_;
  const std::string state_dir_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_FLEET_METRICS_H_
