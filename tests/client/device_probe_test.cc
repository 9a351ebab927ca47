#include "client/device_probe.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "common/base/env.h"
#include "tests/server/temporary_dir.h"

namespace fedge {
namespace {

// A /sys and /proc of a test's own.
class DeviceProbeTest : public ::testing::Test {
 protected:
  DeviceProbeTest() : root_(dir_.path()) {
    Put("/proc/stat", "cpu  100 50 100 700 0 10 10 30 0 0\ncpu0 1 2 3\n");
    Put("/proc/meminfo", "MemTotal:  2000 kB\nMemFree: 5 kB\nMemAvailable:    1000 kB\n");
  }
  void Put(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::string(DirName(root_ + path)));
    std::ofstream(root_ + path) << text;
  }
  DeviceConditions Measure() { return probe_.Measure(); }

  const testing::TemporaryDir dir_;
  const std::string root_;
  ManualClock clock_;
  LinuxProbe probe_{root_, root_, &clock_};
};

TEST_F(DeviceProbeTest, ADeviceWithoutSensorsHasRoomAndNothingElse) {
  const DeviceConditions now = Measure();
  EXPECT_EQ(now.on_mains, std::nullopt);
  EXPECT_EQ(now.battery_percent, std::nullopt);
  EXPECT_EQ(now.temperature_celsius, std::nullopt);
  EXPECT_EQ(now.load, std::nullopt);
  EXPECT_FALSE(now.throttled);
  EXPECT_FALSE(now.metered);
  EXPECT_EQ(now.free_memory_bytes, 1000 * 1024);
  EXPECT_GT(now.free_disk_bytes.value(), 0);
  EXPECT_EQ(probe_.Joules(), std::nullopt);
}

TEST_F(DeviceProbeTest, TellsMainsFromBattery) {
  Put("/sys/class/power_supply/BAT0/type", "Battery\n");
  Put("/sys/class/power_supply/BAT0/capacity", "42\n");
  Put("/sys/class/power_supply/BAT0/status", "Discharging\n");
  Put("/sys/class/power_supply/BAT0/power_now", "5000000\n");
  Put("/sys/class/power_supply/mouse/type", "Battery\n");
  Put("/sys/class/power_supply/mouse/scope", "Device\n");
  Put("/sys/class/power_supply/mouse/capacity", "99\n");
  DeviceConditions now = Measure();
  EXPECT_EQ(now.on_mains, false);
  EXPECT_EQ(now.battery_percent, 42);
  clock_.Advance(absl::Seconds(10));
  Measure();
  EXPECT_EQ(probe_.Joules(), 50);  // 5 W for 10 s
  Put("/sys/class/power_supply/AC/type", "Mains\n");
  Put("/sys/class/power_supply/AC/online", "1\n");
  EXPECT_EQ(Measure().on_mains, true);
  Put("/sys/class/power_supply/AC/online", "0\n");
  EXPECT_EQ(Measure().on_mains, false);
  Put("/sys/class/power_supply/BAT0/status", "Full\n");
  EXPECT_EQ(Measure().on_mains, true);
}

TEST_F(DeviceProbeTest, TakesTheHottestSensorThatIsThere) {
  Put("/sys/class/thermal/thermal_zone0/temp", "45500\n");
  Put("/sys/class/thermal/thermal_zone1/temp", "61000\n");
  Put("/sys/class/thermal/thermal_zone2/temp", "-273000\n");
  Put("/sys/class/thermal/thermal_zone3/temp", "");
  Put("/sys/class/thermal/cooling_device0/temp", "99000\n");
  EXPECT_EQ(Measure().temperature_celsius, 61);
}

TEST_F(DeviceProbeTest, SeesThrottlingOfPisAndOfPcs) {
  Put("/sys/devices/platform/soc/soc:firmware/get_throttled", "50000\n");  // in the past only
  EXPECT_FALSE(Measure().throttled);
  Put("/sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n");
  EXPECT_TRUE(Measure().throttled);
  Put("/sys/devices/platform/soc/soc:firmware/get_throttled", "0\n");
  const std::string count = "/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count";
  Put(count, "7\n");
  EXPECT_FALSE(Measure().throttled);
  Put(count, "8\n");
  EXPECT_TRUE(Measure().throttled);
  clock_.Advance(absl::Seconds(29));
  EXPECT_TRUE(Measure().throttled);
  clock_.Advance(absl::Seconds(2));
  EXPECT_FALSE(Measure().throttled);
}

TEST_F(DeviceProbeTest, LoadIsWhatOthersUseAndChangesSlowly) {
  EXPECT_EQ(Measure().load, std::nullopt);
  clock_.Advance(absl::Seconds(1));
  // 100 ticks: 20 user, 50 niced (ours), 30 idle.
  Put("/proc/stat", "cpu  120 100 100 730 0 10 10 30 0 0\n");
  EXPECT_DOUBLE_EQ(Measure().load.value(), 0.2);
  clock_.Advance(absl::Seconds(1));
  Put("/proc/stat", "cpu  220 100 100 730 0 10 10 30 0 0\n");  // all of it user
  const double load = Measure().load.value();
  EXPECT_GT(load, 0.2);
  EXPECT_LT(load, 0.3);
  clock_.Advance(absl::Seconds(100));
  Put("/proc/stat", "cpu  320 100 100 730 0 10 10 30 0 0\n");
  EXPECT_GT(Measure().load.value(), 0.99);
}

TEST_F(DeviceProbeTest, AMobileNetworkIsMetered) {
  const std::string header = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n";
  Put("/sys/class/net/wwan0/uevent", "DEVTYPE=wwan\nINTERFACE=wwan0\n");
  Put("/sys/class/net/ppp0/type", "512\n");
  Put("/sys/class/net/eth0/type", "1\n");
  const auto route = [&](const std::string& lines) {
    Put("/proc/net/route", header + lines);
    return Measure().metered;
  };
  EXPECT_FALSE(route(""));
  EXPECT_FALSE(
      route("eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\n"
            "wwan0\t00000000\t0100A8C0\t0003\t0\t0\t700\t00000000\n"));
  EXPECT_TRUE(
      route("eth0\t00000000\t0100A8C0\t0003\t0\t0\t1000\t00000000\n"
            "wwan0\t00000000\t0100A8C0\t0003\t0\t0\t700\t00000000\n"));
  EXPECT_TRUE(route("ppp0\t00000000\t00000000\t0003\t0\t0\t0\t00000000\n"));
  EXPECT_FALSE(route("wwan0\t0000A8C0\t00000000\t0001\t0\t0\t700\t00FFFFFF\n"));
}

TEST_F(DeviceProbeTest, CountsThePackagesEnergyOverItsOverflow) {
  Put("/sys/class/powercap/intel-rapl:0/energy_uj", "9000000\n");
  Put("/sys/class/powercap/intel-rapl:0/max_energy_range_uj", "10000000\n");
  Put("/sys/class/powercap/intel-rapl:0:0/energy_uj", "5\n");
  Measure();
  EXPECT_EQ(probe_.Joules(), std::nullopt);
  Put("/sys/class/powercap/intel-rapl:0/energy_uj", "9500000\n");
  Measure();
  EXPECT_DOUBLE_EQ(probe_.Joules().value(), 0.5);
  Put("/sys/class/powercap/intel-rapl:0/energy_uj", "1500000\n");
  Measure();
  EXPECT_DOUBLE_EQ(probe_.Joules().value(), 2.5);
}

TEST(LinuxProbeTest, ReadsThisMachine) {
  LinuxProbe probe("", ".", Clock::Real());
  const DeviceConditions now = probe.Measure();
  EXPECT_GT(now.free_memory_bytes.value(), 0);
  EXPECT_GT(now.free_disk_bytes.value(), 0);
}

}  // namespace
}  // namespace fedge
