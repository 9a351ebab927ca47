#include "tools/report/progress.h"

#include <gtest/gtest.h>

#include <limits>
#include <sstream>

namespace fedge {
namespace {

TEST(ProgressLineTest, RewritesOneLineOnATerminal) {
  std::ostringstream out;
  ManualClock clock;
  ProgressLine line(out, clock, 80);
  line.Update("one");
  line.Update("too soon");
  clock.Advance(absl::Milliseconds(100));
  line.Update("two");
  line.Finish();
  EXPECT_EQ(out.str(), "\rone\x1b[K\rtwo\x1b[K\n");
}

TEST(ProgressLineTest, ShowsTheLastUpdateAtTheEnd) {
  std::ostringstream out;
  ManualClock clock;
  ProgressLine line(out, clock, 0);
  line.Update("one");
  line.Update("two");
  line.Update("three");
  line.Finish();
  line.Finish();
  EXPECT_EQ(out.str(), "one\nthree\n");
}

TEST(ProgressLineTest, PrintsPlainLinesNowAndThenElsewhere) {
  std::ostringstream out;
  ManualClock clock;
  ProgressLine line(out, clock, 0);
  line.Update("one");
  clock.Advance(absl::Seconds(9));
  line.Update("two");
  clock.Advance(absl::Seconds(1));
  line.Update("three");
  EXPECT_EQ(out.str(), "one\nthree\n");
}

TEST(ProgressLineTest, KeepsPrintedLinesAboveTheOpenOne) {
  std::ostringstream out;
  ManualClock clock;
  {
    ProgressLine line(out, clock, 80);
    line.Print("start");
    line.Update("one");
    line.Print("note");
  }
  EXPECT_EQ(out.str(), "start\n\rone\x1b[K\rnote\x1b[K\none\n");
}

TEST(ProgressLineTest, NeverWrapsNorCutsACharacter) {
  std::ostringstream out;
  ManualClock clock;
  {
    ProgressLine line(out, clock, 4);
    line.Update("a\xC3\xA4\xC3\xB6\xC3\xBC");
  }
  EXPECT_EQ(out.str(), "\ra\xC3\xA4\xC3\xB6\x1b[K\n");
}

TEST(FormatTest, ReadsWell) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
  EXPECT_EQ(FormatCount(-1000), "-1,000");
  EXPECT_EQ(FormatCount(std::numeric_limits<int64_t>::min()), "-9,223,372,036,854,775,808");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1000), "1.0 kB");
  EXPECT_EQ(FormatBytes(999'999), "1.0 MB");
  EXPECT_EQ(FormatBytes(3'149'000'000), "3.1 GB");
  EXPECT_EQ(FormatRate(1234.4, "tokens"), "1,234 tokens/s");
  EXPECT_EQ(FormatRate(2.34, "rounds"), "2.3 rounds/s");
  EXPECT_EQ(FormatRate(0.0 / 0.0, "tokens"), "0.0 tokens/s");
  EXPECT_EQ(FormatTimeSpan(absl::Seconds(8)), "8 s");
  EXPECT_EQ(FormatTimeSpan(absl::Seconds(125)), "2 min 05 s");
  EXPECT_EQ(FormatTimeSpan(absl::Minutes(62)), "1 h 02 min");
  EXPECT_EQ(FormatTimeSpan(absl::InfiniteDuration()), "unknown");
}

}  // namespace
}  // namespace fedge
