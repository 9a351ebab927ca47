#include "server/round_metrics.h"

#include <cmath>

#include "fedge/v1/federation.pb.h"

namespace fedge {

bool IsPlausible(const v1::TaskMetrics& metrics) {
  for (const double loss :
       {metrics.train_loss_first(), metrics.train_loss_last(), metrics.validation_loss_before()}) {
    if (!std::isfinite(loss) || loss < 0) return false;
  }
  return true;
}

RoundMetrics Summarize(const std::vector<Contribution>& contributions,
                       const std::map<TaskKey, v1::TaskMetrics>& metrics) {
  RoundMetrics result;
  double examples = 0;
  double first = 0;
  double last = 0;
  double validation = 0;
  double validation_tokens = 0;
  for (const Contribution& contribution : contributions) {
    const auto found = metrics.find({contribution.round, contribution.node_id});
    if (found == metrics.end()) continue;
    const v1::TaskMetrics& device = found->second;
    const double weight = static_cast<double>(contribution.weight);
    const double tokens = static_cast<double>(device.validation_tokens());
    ++result.devices;
    examples += weight;
    first += weight * device.train_loss_first();
    last += weight * device.train_loss_last();
    validation += tokens * device.validation_loss_before();
    validation_tokens += tokens;
    result.validation_tokens += device.validation_tokens();
    result.train_tokens += device.train_tokens();
    result.upload_bytes += device.upload_bytes();
    result.download_bytes += device.download_bytes();
  }
  if (examples > 0) {
    result.train_loss_first = first / examples;
    result.train_loss_last = last / examples;
  }
  if (validation_tokens > 0) result.validation_loss = validation / validation_tokens;
  return result;
}

}  // namespace fedge
