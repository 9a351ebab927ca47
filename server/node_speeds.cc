#include "server/node_speeds.h"

#include <algorithm>
#include <cmath>

namespace fedge {
namespace {

constexpr size_t kMaxNodes = 1'000'000;
constexpr double kNewShare = 0.3;
constexpr double kQuantile = 0.9;
constexpr double kLongestSeconds = 30.0 * 86400;

}  // namespace

NodeSpeeds::Task* NodeSpeeds::FindOrAdd(absl::string_view node) {
  const auto found = tasks_.find(node);
  if (found != tasks_.end()) return &found->second;
  if (tasks_.size() >= kMaxNodes) return nullptr;
  return &tasks_[std::string(node)];
}

void NodeSpeeds::NoteRate(absl::string_view node, double tokens_per_second) {
  if (!(tokens_per_second > 0) || !std::isfinite(tokens_per_second)) return;
  Task* const task = FindOrAdd(node);
  if (task == nullptr || task->is_measured) return;
  const double seconds = static_cast<double>(tokens_per_task_) / tokens_per_second;
  task->time = absl::Seconds(std::min(seconds, kLongestSeconds));
}

void NodeSpeeds::NoteTask(absl::string_view node, absl::Duration took) {
  if (took <= absl::ZeroDuration()) return;
  Task* const task = FindOrAdd(node);
  if (task == nullptr) return;
  task->time = task->is_measured ? task->time + (took - task->time) * kNewShare : took;
  task->is_measured = true;
}

std::optional<absl::Duration> NodeSpeeds::Expected(absl::string_view node) const {
  const auto found = tasks_.find(node);
  if (found == tasks_.end()) return std::nullopt;
  return found->second.time;
}

std::optional<absl::Duration> NodeSpeeds::MostOf(const std::vector<std::string>& nodes) const {
  std::vector<absl::Duration> times;
  for (const std::string& node : nodes) {
    if (const std::optional<absl::Duration> time = Expected(node)) times.push_back(*time);
  }
  if (times.empty() || 2 * times.size() < nodes.size()) return std::nullopt;
  const auto rank = static_cast<size_t>(std::ceil(kQuantile * static_cast<double>(times.size())));
  const auto place = times.begin() + static_cast<std::ptrdiff_t>(rank - 1);
  std::nth_element(times.begin(), place, times.end());
  return *place;
}

}  // namespace fedge
