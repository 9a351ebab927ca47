#include "server/event_log.h"

#include <algorithm>
#include <utility>

namespace fedge {

bool EventLog::Fits(const v1::Event& event, const v1::LogsRequest& filter) {
  return (filter.run_id().empty() || event.run_id() == filter.run_id()) &&
         (filter.node_id().empty() || event.node_id() == filter.node_id());
}

void EventLog::Add(v1::Event event) {
  event.set_time_us(absl::ToUnixMicros(clock_.Now()));
  absl::MutexLock lock(&mutex_);
  event.set_sequence(++last_);
  ++counts_[{event.run_id(), event.kind()}];
  events_.push_back(std::move(event));
  if (events_.size() > capacity_) events_.pop_front();
}

std::vector<v1::Event> EventLog::Newest(const v1::LogsRequest& filter, size_t count) {
  std::vector<v1::Event> found;
  absl::MutexLock lock(&mutex_);
  for (auto event = events_.rbegin(); event != events_.rend() && found.size() < count; ++event) {
    if (Fits(*event, filter)) found.push_back(*event);
  }
  std::reverse(found.begin(), found.end());
  return found;
}

std::vector<v1::Event> EventLog::After(uint64_t sequence, const v1::LogsRequest& filter,
                                       absl::Duration timeout) {
  const auto any = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return last_ > sequence; };
  std::vector<v1::Event> found;
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&any), timeout);
  for (const v1::Event& event : events_) {
    if (event.sequence() > sequence && Fits(event, filter)) found.push_back(event);
  }
  return found;
}

uint64_t EventLog::last_sequence() {
  absl::MutexLock lock(&mutex_);
  return last_;
}

std::vector<EventCount> EventLog::Counts() {
  std::vector<EventCount> counts;
  absl::MutexLock lock(&mutex_);
  for (const auto& [key, count] : counts_) counts.push_back({key.first, key.second, count});
  return counts;
}

}  // namespace fedge
