#include "client/device_policy.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/base/status.h"
#include "common/training/memory_plan.h"

namespace fedge {
namespace {

// How far from its limit a value must be before what it refused is allowed again.
constexpr double kBatteryMargin = 5;      // points
constexpr double kTemperatureMargin = 5;  // degrees
constexpr double kLoadMargin = 0.15;
constexpr double kRoomFactor = 1.1;  // of memory and disk

absl::Status OutOfRange(absl::string_view field, double value, absl::string_view range) {
  return absl::InvalidArgumentError(
      absl::StrCat("policy.", field, ": ", value, " is not within ", range));
}

absl::StatusOr<int> ParseMinute(absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ':');
  int hour = 0, minute = 0;
  if (parts.size() != 2 || parts[1].size() != 2 || !absl::SimpleAtoi(parts[0], &hour) ||
      !absl::SimpleAtoi(parts[1], &minute) || hour < 0 || hour > 24 || minute < 0 || minute > 59 ||
      hour * 60 + minute > 24 * 60) {
    return absl::InvalidArgumentError(
        absl::StrCat("policy.quiet_hours: \"", text, "\" is no time; write 22:00-06:30"));
  }
  return (hour * 60 + minute) % (24 * 60);
}

absl::StatusOr<QuietHours> ParseQuietHours(absl::string_view text) {
  const std::pair<absl::string_view, absl::string_view> ends =
      absl::StrSplit(text, absl::MaxSplits('-', 1));
  QuietHours hours;
  ASSIGN_OR_RETURN(hours.begin_minute, ParseMinute(ends.first));
  ASSIGN_OR_RETURN(hours.end_minute, ParseMinute(ends.second));
  return hours;
}

absl::StatusOr<int64_t> ParseRoom(absl::string_view field, const std::string& text) {
  if (text == "0") return int64_t{0};
  const absl::StatusOr<int64_t> bytes = ParseByteSize(text);
  if (!bytes.ok()) return Annotate(bytes.status(), absl::StrCat("policy.", field));
  return *bytes;
}

bool Within(const QuietHours& hours, int minute) {
  if (hours.begin_minute <= hours.end_minute) {
    return minute >= hours.begin_minute && minute < hours.end_minute;
  }
  return minute >= hours.begin_minute || minute < hours.end_minute;
}

std::string ClockTime(int minute) { return absl::StrFormat("%02d:%02d", minute / 60, minute % 60); }

// Collects reasons.
class Deciding {
 public:
  Deciding(const DevicePolicy& policy, const DeviceConditions& now, const PolicyDecision& before)
      : policy_(policy), now_(now), before_(before) {}

  PolicyDecision Run() {
    Power();
    Heat();
    Room();
    Link();
    if (now_.load && *now_.load > policy_.max_load - Margin(Refusal::kLoad, kLoadMargin)) {
      Refuse(Refusal::kLoad,
             absl::StrFormat("other programs use %.0f %% of the processors, the limit is %.0f %%",
                             *now_.load * 100, policy_.max_load * 100));
    }
    if (policy_.quiet_hours && Within(*policy_.quiet_hours, now_.minute_of_day)) {
      Refuse(Refusal::kQuietHours,
             absl::StrCat("quiet hours until ", ClockTime(policy_.quiet_hours->end_minute)));
    }
    return std::move(decision_);
  }

 private:
  void Refuse(Refusal refusal, std::string text) {
    decision_.reasons.push_back({refusal, std::move(text)});
  }
  double Margin(Refusal refusal, double margin) const { return before_.Has(refusal) ? margin : 0; }

  void Power() {
    if (now_.on_mains.value_or(true)) return;
    if (policy_.min_battery_percent >= 100) {
      return Refuse(Refusal::kBattery, "on battery; this device works on mains only");
    }
    const double limit = policy_.min_battery_percent + Margin(Refusal::kBattery, kBatteryMargin);
    if (now_.battery_percent && *now_.battery_percent <= std::min(limit, 99.0)) {
      Refuse(Refusal::kBattery,
             absl::StrFormat("battery at %.0f %%, the limit is %.0f %%", *now_.battery_percent,
                             policy_.min_battery_percent));
    }
  }

  void Heat() {
    if (now_.throttled) {
      Refuse(Refusal::kThrottled, "the hardware throttles itself: too hot, or too little power");
    }
    const double limit =
        policy_.max_temperature_celsius - Margin(Refusal::kTemperature, kTemperatureMargin);
    if (now_.temperature_celsius && *now_.temperature_celsius >= limit) {
      Refuse(Refusal::kTemperature,
             absl::StrFormat("%.0f degrees, the limit is %.0f", *now_.temperature_celsius,
                             policy_.max_temperature_celsius));
    }
  }

  void Room() {
    const auto too_little = [&](Refusal refusal, std::optional<int64_t> free, int64_t limit,
                                absl::string_view what) {
      const double factor = before_.Has(refusal) ? kRoomFactor : 1;
      if (!free || static_cast<double>(*free) >= static_cast<double>(limit) * factor) return;
      Refuse(refusal, absl::StrCat(what, ": ", FormatMegabytes(*free), " free, the limit is ",
                                   FormatMegabytes(limit)));
    };
    too_little(Refusal::kMemory, now_.free_memory_bytes, policy_.min_free_memory_bytes, "memory");
    too_little(Refusal::kDisk, now_.free_disk_bytes, policy_.min_free_disk_bytes,
               "disk of the state folder");
  }

  void Link() {
    if (now_.metered && !policy_.allow_metered) {
      Refuse(Refusal::kMetered, "the default route is a mobile network (policy.allow_metered)");
    }
    if (policy_.max_bytes_per_day > 0 && now_.bytes_today >= policy_.max_bytes_per_day) {
      Refuse(Refusal::kByteBudget,
             absl::StrCat(now_.bytes_today, " bytes sent and received today, the limit is ",
                          policy_.max_bytes_per_day));
    }
  }

  const DevicePolicy& policy_;
  const DeviceConditions& now_;
  const PolicyDecision& before_;
  PolicyDecision decision_;
};

}  // namespace

absl::StatusOr<DevicePolicy> ParsePolicy(const v1::PolicyConfig& config) {
  DevicePolicy policy;
  if (config.has_min_battery_percent()) policy.min_battery_percent = config.min_battery_percent();
  if (!(policy.min_battery_percent >= 0 && policy.min_battery_percent <= 100)) {
    return OutOfRange("min_battery_percent", policy.min_battery_percent, "[0, 100]");
  }
  if (config.has_max_temperature_celsius()) {
    policy.max_temperature_celsius = config.max_temperature_celsius();
  }
  if (!(policy.max_temperature_celsius >= 20 && policy.max_temperature_celsius <= 150)) {
    return OutOfRange("max_temperature_celsius", policy.max_temperature_celsius, "[20, 150]");
  }
  if (config.has_max_load()) policy.max_load = config.max_load();
  if (!(policy.max_load > 0 && policy.max_load <= 1)) {
    return OutOfRange("max_load", policy.max_load, "(0, 1]");
  }
  if (config.has_quiet_hours()) {
    ASSIGN_OR_RETURN(policy.quiet_hours, ParseQuietHours(config.quiet_hours()));
  }
  if (config.has_min_free_memory()) {
    ASSIGN_OR_RETURN(policy.min_free_memory_bytes,
                     ParseRoom("min_free_memory", config.min_free_memory()));
  }
  if (config.has_min_free_disk()) {
    ASSIGN_OR_RETURN(policy.min_free_disk_bytes,
                     ParseRoom("min_free_disk", config.min_free_disk()));
  }
  policy.allow_metered = config.allow_metered();
  if (config.has_max_bytes_per_day()) {
    ASSIGN_OR_RETURN(const int64_t bytes,
                     ParseRoom("max_bytes_per_day", config.max_bytes_per_day()));
    policy.max_bytes_per_day = static_cast<uint64_t>(bytes);
  }
  return policy;
}

bool PolicyDecision::Has(Refusal refusal) const {
  return std::any_of(reasons.begin(), reasons.end(),
                     [&](const RefusalReason& reason) { return reason.refusal == refusal; });
}

PolicyDecision Decide(const DevicePolicy& policy, const DeviceConditions& now,
                      const PolicyDecision& before) {
  return Deciding(policy, now, before).Run();
}

bool MayFinish(const PolicyDecision& decision) {
  return std::all_of(decision.reasons.begin(), decision.reasons.end(), [](const auto& reason) {
    return reason.refusal == Refusal::kByteBudget || reason.refusal == Refusal::kMetered;
  });
}

}  // namespace fedge
