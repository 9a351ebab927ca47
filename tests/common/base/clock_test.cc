#include "common/base/clock.h"

#include <gtest/gtest.h>

#include "absl/time/time.h"

namespace fedge {
namespace {

TEST(ManualClockTest, MovesOnlyWhenTold) {
  ManualClock clock;
  const absl::Time start = absl::FromCivil(absl::CivilSecond(2026, 1, 1), absl::UTCTimeZone());
  EXPECT_EQ(clock.Now(), start);
  EXPECT_EQ(clock.Monotonic(), absl::ZeroDuration());
  EXPECT_EQ(clock.Now(), start);
  clock.Advance(absl::Milliseconds(1500));
  EXPECT_EQ(clock.Monotonic(), absl::Milliseconds(1500));
  clock.Sleep(absl::Hours(24));
  EXPECT_EQ(clock.Monotonic(), absl::Hours(24) + absl::Milliseconds(1500));
  EXPECT_EQ(clock.Now() - start, clock.Monotonic());
}

TEST(RealClockTest, NeverGoesBack) {
  Clock* const clock = Clock::Real();
  ASSERT_NE(clock, nullptr);
  EXPECT_EQ(clock, Clock::Real());
  absl::Duration last = clock->Monotonic();
  for (int i = 0; i < 1000; ++i) {
    const absl::Duration now = clock->Monotonic();
    ASSERT_GE(now, last);
    last = now;
  }
  EXPECT_GT(clock->Now(), absl::FromCivil(absl::CivilYear(2020), absl::UTCTimeZone()));
}

}  // namespace
}  // namespace fedge
