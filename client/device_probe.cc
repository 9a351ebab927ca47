#include "client/device_probe.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace fedge {
namespace {

constexpr size_t kMaxFileBytes = 64 << 10;
// The load counts with this time constant: a compiler that runs for a moment does not stop a task.
constexpr absl::Duration kLoadMemory = absl::Seconds(15);
constexpr absl::Duration kShortestLoadSpan = absl::Milliseconds(100);
// A throttling event counts for so long: counters say that it happened, not that it ended.
constexpr absl::Duration kThrottleMemory = absl::Seconds(30);
// Raspberry Pi, bits of "get_throttled" that are about now: under-voltage, capped frequency,
// throttled, soft temperature limit.
constexpr uint64_t kPiThrottledNow = 0xf;
constexpr double kLowestSensor = -40, kHighestSensor = 150;  // beyond: a sensor that is not there

}  // namespace

LinuxProbe::LinuxProbe(std::string root, std::string disk, Clock* clock)
    : root_(std::move(root)), disk_(std::move(disk)), clock_(clock) {}

std::string LinuxProbe::Read(const std::string& path) const {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(file.gcount(), 0)));
  return std::string(absl::StripAsciiWhitespace(text));
}

std::optional<double> LinuxProbe::ReadNumber(const std::string& path) const {
  double value = 0;
  if (!absl::SimpleAtod(Read(path), &value) || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::map<std::string, std::string> LinuxProbe::List(const std::string& dir) const {
  std::map<std::string, std::string> entries;
  std::error_code error;
  std::filesystem::directory_iterator it(root_ + dir, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    entries[it->path().filename().string()] = it->path().string();
  }
  return entries;
}

DeviceConditions LinuxProbe::Measure() {
  DeviceConditions now;
  MeasurePower(now);
  MeasureHeat(now);
  MeasureLoad(now);
  MeasureMemory(now);
  AddRapl();
  struct statvfs disk;
  if (statvfs(disk_.c_str(), &disk) == 0) {
    now.free_disk_bytes = static_cast<int64_t>(disk.f_bavail * disk.f_frsize);
  }
  now.metered = IsMetered();
  return now;
}

void LinuxProbe::MeasurePower(DeviceConditions& now) {
  const absl::Duration at = clock_->Monotonic();
  double watts = 0;
  bool measured = false;
  for (const auto& [name, path] : List("/sys/class/power_supply")) {
    const std::string type = Read(path + "/type");
    if (Read(path + "/scope") == "Device") continue;  // a mouse's battery is not ours
    if (type == "Battery") {
      const std::string status = Read(path + "/status");
      const std::optional<double> percent = ReadNumber(path + "/capacity");
      if (percent) now.battery_percent = std::max(now.battery_percent.value_or(0), *percent);
      // Without a supply that says it is online, a battery that does not discharge says so.
      if (!now.on_mains.value_or(false)) now.on_mains = status != "Discharging";
      std::optional<double> microwatts = ReadNumber(path + "/power_now");
      const std::optional<double> current = ReadNumber(path + "/current_now");
      const std::optional<double> voltage = ReadNumber(path + "/voltage_now");
      if (!microwatts && current && voltage) microwatts = *current * *voltage / 1e6;
      if (microwatts && status == "Discharging") {
        watts += std::abs(*microwatts) / 1e6;
        measured = true;
      }
    } else if (ReadNumber(path + "/online").value_or(0) == 1) {
      now.on_mains = true;
    }
  }
  if (measured && power_at_) {
    battery_joules_ = battery_joules_.value_or(0) + watts * absl::ToDoubleSeconds(at - *power_at_);
  }
  power_at_ = at;
}

void LinuxProbe::MeasureHeat(DeviceConditions& now) {
  for (const auto& [name, path] : List("/sys/class/thermal")) {
    if (!absl::StartsWith(name, "thermal_zone")) continue;
    const std::optional<double> milli = ReadNumber(path + "/temp");
    if (!milli || *milli < kLowestSensor * 1000 || *milli > kHighestSensor * 1000) continue;
    now.temperature_celsius = std::max(now.temperature_celsius.value_or(-1e9), *milli / 1000);
  }
  uint64_t pi = 0;
  if (absl::SimpleHexAtoi(Read(root_ + "/sys/devices/platform/soc/soc:firmware/get_throttled"),
                          &pi)) {
    now.throttled = (pi & kPiThrottledNow) != 0;
  }
  const std::optional<double> count =
      ReadNumber(root_ + "/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count");
  const absl::Duration at = clock_->Monotonic();
  if (count) {
    const auto events = static_cast<uint64_t>(std::max(0.0, *count));
    if (throttle_count_ && events > *throttle_count_) throttled_until_ = at + kThrottleMemory;
    throttle_count_ = events;
  }
  now.throttled = now.throttled || at < throttled_until_;
}

std::optional<LinuxProbe::ProcessorTime> LinuxProbe::ReadProcessorTime() const {
  // "cpu user nice system idle iowait irq softirq steal ...": this daemon runs niced, so that what
  // it uses is not in `user`.
  const std::string text = Read(root_ + "/proc/stat");
  const std::vector<absl::string_view> words =
      absl::StrSplit(absl::string_view(text).substr(0, text.find('\n')), ' ', absl::SkipEmpty());
  if (words.size() < 9 || words[0] != "cpu") return std::nullopt;
  uint64_t values[8];
  for (size_t i = 0; i < 8; ++i) {
    if (!absl::SimpleAtoi(words[i + 1], &values[i])) return std::nullopt;
  }
  ProcessorTime time;
  for (const uint64_t value : values) time.total += value;
  time.busy = values[0] + values[2] + values[5] + values[6] + values[7];
  return time;
}

void LinuxProbe::MeasureLoad(DeviceConditions& now) {
  const absl::Duration at = clock_->Monotonic();
  if (processor_before_ && at - load_at_ < kShortestLoadSpan) {
    now.load = load_;
    return;
  }
  const std::optional<ProcessorTime> time = ReadProcessorTime();
  if (time && processor_before_ && time->total > processor_before_->total) {
    const double share =
        static_cast<double>(time->busy - std::min(time->busy, processor_before_->busy)) /
        static_cast<double>(time->total - processor_before_->total);
    const double kept = std::exp(-absl::FDivDuration(at - load_at_, kLoadMemory));
    load_ = load_ ? kept * *load_ + (1 - kept) * share : share;
  }
  if (time) processor_before_ = time;
  load_at_ = at;
  now.load = load_;
}

void LinuxProbe::MeasureMemory(DeviceConditions& now) const {
  for (const absl::string_view line : absl::StrSplit(Read(root_ + "/proc/meminfo"), '\n')) {
    int64_t kib = 0;
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (words.size() >= 2 && words[0] == "MemAvailable:" && absl::SimpleAtoi(words[1], &kib)) {
      now.free_memory_bytes = kib * 1024;
    }
  }
}

bool LinuxProbe::IsMetered() const {
  // "Iface Destination Gateway Flags ... Metric Mask": the default route goes to 0 with mask 0; of
  // several the one of the lowest metric is used.
  std::string interface;
  int64_t lowest = 0;
  for (const absl::string_view line : absl::StrSplit(Read(root_ + "/proc/net/route"), '\n')) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    int64_t metric = 0;
    if (words.size() < 8 || words[1] != "00000000" || words[7] != "00000000" ||
        !absl::SimpleAtoi(words[6], &metric) || (!interface.empty() && metric >= lowest)) {
      continue;
    }
    interface = std::string(words[0]);
    lowest = metric;
  }
  if (interface.empty() || absl::StrContains(interface, "..")) return false;
  const std::string path = absl::StrCat(root_, "/sys/class/net/", interface);
  constexpr absl::string_view kPointToPoint = "512";  // ARPHRD_PPP
  return absl::StrContains(Read(path + "/uevent"), "DEVTYPE=wwan") ||
         Read(path + "/type") == kPointToPoint;
}

void LinuxProbe::AddRapl() {
  for (const auto& [name, path] : List("/sys/class/powercap")) {
    // Packages only: "intel-rapl:0", whose parts are "intel-rapl:0:0".
    if (!absl::StartsWith(name, "intel-rapl:") || std::count(name.begin(), name.end(), ':') != 1) {
      continue;
    }
    const std::optional<double> now = ReadNumber(path + "/energy_uj");
    if (!now) continue;
    const auto before = rapl_before_.find(name);
    if (before != rapl_before_.end()) {
      double used = *now - before->second;
      if (used < 0) used += ReadNumber(path + "/max_energy_range_uj").value_or(-used);
      rapl_joules_ = rapl_joules_.value_or(0) + used / 1e6;
    }
    rapl_before_[name] = *now;
  }
}

std::optional<double> LinuxProbe::Joules() {
  // The battery gives all that the device uses, RAPL the processor's part of it.
  return battery_joules_ ? battery_joules_ : rapl_joules_;
}

}  // namespace fedge
