#include "client/device_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace fedge {
namespace {

using ::testing::HasSubstr;

DeviceConditions Good() {
  DeviceConditions now;
  now.on_mains = true;
  now.temperature_celsius = 50;
  now.load = 0.1;
  now.free_memory_bytes = 1'000'000'000;
  now.free_disk_bytes = 10'000'000'000;
  now.minute_of_day = 12 * 60;
  return now;
}

// The only reason, or "" when there is none.
std::string Reason(const DevicePolicy& policy, const DeviceConditions& now) {
  const PolicyDecision decision = Decide(policy, now, PolicyDecision());
  EXPECT_LE(decision.reasons.size(), 1u);
  return decision.allowed() ? "" : decision.reasons[0].text;
}

TEST(DevicePolicyTest, AllowsWhatIsGoodAndWhatIsNotKnown) {
  EXPECT_TRUE(Decide(DevicePolicy(), Good(), PolicyDecision()).allowed());
  EXPECT_TRUE(Decide(DevicePolicy(), DeviceConditions(), PolicyDecision()).allowed());
}

TEST(DevicePolicyTest, NamesEachLimit) {
  DevicePolicy policy;
  DeviceConditions now = Good();
  now.on_mains = false;
  now.battery_percent = 99;
  EXPECT_EQ(Reason(policy, now), "on battery; this device works on mains only");
  policy.min_battery_percent = 60;
  EXPECT_EQ(Reason(policy, now), "");
  now.battery_percent = 60;
  EXPECT_EQ(Reason(policy, now), "battery at 60 %, the limit is 60 %");
  now = Good();
  now.temperature_celsius = 80;
  EXPECT_EQ(Reason(policy, now), "80 degrees, the limit is 80");
  now = Good();
  now.throttled = true;
  EXPECT_THAT(Reason(policy, now), HasSubstr("throttles itself"));
  now = Good();
  now.load = 0.8;
  EXPECT_EQ(Reason(policy, now), "other programs use 80 % of the processors, the limit is 75 %");
  now = Good();
  now.free_memory_bytes = 63'000'000;
  EXPECT_EQ(Reason(policy, now), "memory: 63 MB free, the limit is 64 MB");
  now = Good();
  now.free_disk_bytes = 0;
  EXPECT_EQ(Reason(policy, now), "disk of the state folder: 0 MB free, the limit is 256 MB");
  now = Good();
  now.metered = true;
  EXPECT_THAT(Reason(policy, now), HasSubstr("mobile network"));
  policy.allow_metered = true;
  EXPECT_EQ(Reason(policy, now), "");
  policy.max_bytes_per_day = 1000;
  now.bytes_today = 1000;
  EXPECT_EQ(Reason(policy, now), "1000 bytes sent and received today, the limit is 1000");
}

TEST(DevicePolicyTest, QuietHoursEndAndMayPassMidnight) {
  DevicePolicy policy;
  DeviceConditions now = Good();
  const auto quiet = [&](int hour, int minute) {
    now.minute_of_day = hour * 60 + minute;
    return !Decide(policy, now, PolicyDecision()).allowed();
  };
  policy.quiet_hours = QuietHours{9 * 60, 17 * 60 + 30};
  EXPECT_FALSE(quiet(8, 59));
  EXPECT_TRUE(quiet(9, 0));
  EXPECT_TRUE(quiet(17, 29));
  EXPECT_FALSE(quiet(17, 30));
  policy.quiet_hours = QuietHours{22 * 60, 6 * 60};
  EXPECT_TRUE(quiet(23, 59));
  EXPECT_TRUE(quiet(0, 0));
  EXPECT_FALSE(quiet(6, 0));
  EXPECT_FALSE(quiet(21, 59));
}

TEST(DevicePolicyTest, WhatWasRefusedNeedsAMargin) {
  DevicePolicy policy;
  policy.min_battery_percent = 50;
  DeviceConditions now = Good();
  PolicyDecision before;
  const auto allowed = [&] {
    before = Decide(policy, now, before);
    return before.allowed();
  };
  now.temperature_celsius = 79;
  EXPECT_TRUE(allowed());
  now.temperature_celsius = 81;
  EXPECT_FALSE(allowed());
  now.temperature_celsius = 76;
  EXPECT_FALSE(allowed());
  now.temperature_celsius = 74;
  EXPECT_TRUE(allowed());
  now.temperature_celsius = 76;
  EXPECT_TRUE(allowed());

  now.on_mains = false;
  now.battery_percent = 50;
  EXPECT_FALSE(allowed());
  now.battery_percent = 54;
  EXPECT_FALSE(allowed());
  now.battery_percent = 56;
  EXPECT_TRUE(allowed());
  now.load = 0.76;
  EXPECT_FALSE(allowed());
  now.load = 0.65;
  EXPECT_FALSE(allowed());
  now.load = 0.55;
  EXPECT_TRUE(allowed());
  now.free_disk_bytes = 255'000'000;
  EXPECT_FALSE(allowed());
  now.free_disk_bytes = 270'000'000;
  EXPECT_FALSE(allowed());
  now.free_disk_bytes = 290'000'000;
  EXPECT_TRUE(allowed());
}

TEST(DevicePolicyTest, AFullBatteryIsAllowedAgainAfterAHighLimit) {
  DevicePolicy policy;
  policy.min_battery_percent = 98;
  DeviceConditions now = Good();
  now.on_mains = false;
  now.battery_percent = 97;
  const PolicyDecision before = Decide(policy, now, PolicyDecision());
  EXPECT_FALSE(before.allowed());
  now.battery_percent = 100;
  EXPECT_TRUE(Decide(policy, now, before).allowed());
}

TEST(DevicePolicyTest, TheDaysBytesAreNoReasonToStopTraining) {
  DevicePolicy policy;
  policy.max_bytes_per_day = 10;
  DeviceConditions now = Good();
  now.bytes_today = 11;
  now.metered = true;
  PolicyDecision decision = Decide(policy, now, PolicyDecision());
  EXPECT_EQ(decision.reasons.size(), 2u);
  EXPECT_TRUE(MayFinish(decision));
  now.throttled = true;
  EXPECT_FALSE(MayFinish(Decide(policy, now, decision)));
}

absl::Status ParseError(const v1::PolicyConfig& config) { return ParsePolicy(config).status(); }

TEST(DevicePolicyTest, ReadsItsSettingsAndRefusesWrongOnes) {
  v1::PolicyConfig config;
  EXPECT_EQ(ParsePolicy(config)->min_battery_percent, 100);
  config.set_quiet_hours("22:00-6:30");
  config.set_min_free_memory("1GiB");
  config.set_min_free_disk("0");
  config.set_max_bytes_per_day("5MB");
  const auto policy = ParsePolicy(config);
  ASSERT_TRUE(policy.ok()) << policy.status();
  EXPECT_EQ(policy->quiet_hours->begin_minute, 22 * 60);
  EXPECT_EQ(policy->quiet_hours->end_minute, 6 * 60 + 30);
  EXPECT_EQ(policy->min_free_memory_bytes, int64_t{1} << 30);
  EXPECT_EQ(policy->min_free_disk_bytes, 0);
  EXPECT_EQ(policy->max_bytes_per_day, 5'000'000u);
  for (const char* const hours :
       {"", "22:00", "25:00-06:00", "22:60-06:00", "22-06", "a:00-6:00"}) {
    config.set_quiet_hours(hours);
    EXPECT_THAT(ParseError(config).message(), HasSubstr("policy.quiet_hours")) << hours;
  }
  config.clear_quiet_hours();
  config.set_min_battery_percent(101);
  EXPECT_THAT(ParseError(config).message(),
              HasSubstr("policy.min_battery_percent: 101 is not within [0, 100]"));
  config.clear_min_battery_percent();
  config.set_max_load(0);
  EXPECT_THAT(ParseError(config).message(), HasSubstr("policy.max_load"));
  config.clear_max_load();
  config.set_max_temperature_celsius(1000);
  EXPECT_THAT(ParseError(config).message(), HasSubstr("policy.max_temperature_celsius"));
  config.clear_max_temperature_celsius();
  config.set_min_free_memory("much");
  EXPECT_THAT(ParseError(config).message(), HasSubstr("policy.min_free_memory: \"much\""));
}

}  // namespace
}  // namespace fedge
