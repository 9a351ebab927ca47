// When a device works for the run, as a pure function of what was measured: charge, temperature,
// load of others, hours, room, link. Reading the device is client/device_probe.h; acting on the
// decision is client/supervisor.h.
#ifndef FEDGE_CLIENT_DEVICE_POLICY_H_
#define FEDGE_CLIENT_DEVICE_POLICY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "fedge/v1/client.pb.h"

namespace fedge {

// What is not known has no value, and refuses nothing.
struct DeviceConditions {
  std::optional<bool> on_mains;
  std::optional<double> battery_percent;
  std::optional<double> temperature_celsius;  // of the hottest sensor
  bool throttled = false;                     // the hardware slows itself down: heat or power
  std::optional<double> load;                 // of other programs, part of all processors, [0, 1]
  std::optional<int64_t> free_memory_bytes;
  std::optional<int64_t> free_disk_bytes;
  bool metered = false;
  uint64_t bytes_today = 0;  // sent and received
  int minute_of_day = 0;     // local time, 0 to 1439
};

struct QuietHours {
  int begin_minute = 0;  // of the day; may be after the end: over midnight
  int end_minute = 0;
};

struct DevicePolicy {
  double min_battery_percent = 100;
  double max_temperature_celsius = 80;
  double max_load = 0.75;
  std::optional<QuietHours> quiet_hours;
  int64_t min_free_memory_bytes = 64'000'000;
  int64_t min_free_disk_bytes = 256'000'000;
  bool allow_metered = false;
  uint64_t max_bytes_per_day = 0;  // 0: no limit
};

// InvalidArgument names the field, what it is and what it may be.
absl::StatusOr<DevicePolicy> ParsePolicy(const v1::PolicyConfig& config);

enum class Refusal {
  kBattery,
  kTemperature,
  kThrottled,
  kLoad,
  kQuietHours,
  kMemory,
  kDisk,
  kMetered,
  kByteBudget,
};

struct RefusalReason {
  Refusal refusal;
  std::string text;  // one line: what it is, what the limit is
};

struct PolicyDecision {
  std::vector<RefusalReason> reasons;  // none: go ahead
  bool allowed() const { return reasons.empty(); }
  bool Has(Refusal refusal) const;
};

// What `before` refused is allowed again only with a margin, so that a device at a limit does not
// change its mind all the time.
PolicyDecision Decide(const DevicePolicy& policy, const DeviceConditions& now,
                      const PolicyDecision& before);

// Whether what was begun may go on where nothing new would be: a transfer that is under way passes
// the day's bytes.
bool MayFinish(const PolicyDecision& decision);

}  // namespace fedge

#endif  // FEDGE_CLIENT_DEVICE_POLICY_H_
