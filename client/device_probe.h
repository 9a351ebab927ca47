// What a device says of itself, from /sys and /proc: the conditions a policy decides by, and the
// energy spent.
#ifndef FEDGE_CLIENT_DEVICE_PROBE_H_
#define FEDGE_CLIENT_DEVICE_PROBE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "client/device_policy.h"
#include "common/base/clock.h"

namespace fedge {

// Not thread-safe.
class DeviceProbe {
 public:
  virtual ~DeviceProbe() = default;
  // Bytes and time of day are the caller's to fill in.
  virtual DeviceConditions Measure() = 0;
  // Joules since the first Measure; empty where nothing can be measured. Power of a battery is
  // integrated from Measure to Measure.
  virtual std::optional<double> Joules() = 0;
};

// Linux. Fractions of a millisecond a Measure.
class LinuxProbe : public DeviceProbe {
 public:
  // `root` stands before /sys and /proc ("" on a device); `disk` is a folder of the disk whose room
  // counts. The clock is borrowed.
  LinuxProbe(std::string root, std::string disk, Clock* clock);
  DeviceConditions Measure() override;
  std::optional<double> Joules() override;

 private:
  struct ProcessorTime {
    uint64_t busy = 0;  // of programs at normal priority, and of the kernel
    uint64_t total = 0;
  };

  std::string Read(const std::string& path) const;  // "" when it cannot be read
  std::optional<double> ReadNumber(const std::string& path) const;
  std::map<std::string, std::string> List(const std::string& dir) const;  // name to path

  void MeasurePower(DeviceConditions& now);
  void MeasureHeat(DeviceConditions& now);
  void MeasureLoad(DeviceConditions& now);
  void MeasureMemory(DeviceConditions& now) const;
  bool IsMetered() const;
  std::optional<ProcessorTime> ReadProcessorTime() const;
  void AddRapl();

  const std::string root_;
  const std::string disk_;
  Clock* const clock_;
  std::optional<ProcessorTime> processor_before_;
  std::optional<double> load_;  // smoothed
  absl::Duration load_at_;
  std::optional<uint64_t> throttle_count_;
  absl::Duration throttled_until_ = -absl::InfiniteDuration();
  std::optional<absl::Duration> power_at_;
  std::optional<double> battery_joules_;
  std::map<std::string, double> rapl_before_;  // microjoules
  std::optional<double> rapl_joules_;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_DEVICE_PROBE_H_
