#include "server/event_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace fedge {
namespace {

using ::testing::ElementsAre;

v1::Event Event(const std::string& run, const std::string& node, const std::string& text) {
  v1::Event event;
  event.set_run_id(run);
  event.set_node_id(node);
  event.set_text(text);
  return event;
}

std::vector<std::string> Texts(const std::vector<v1::Event>& events) {
  std::vector<std::string> texts;
  for (const v1::Event& event : events) texts.push_back(event.text());
  return texts;
}

v1::LogsRequest Filter(const std::string& run, const std::string& node) {
  v1::LogsRequest filter;
  filter.set_run_id(run);
  filter.set_node_id(node);
  return filter;
}

TEST(EventLogTest, KeepsTheNewestInOrder) {
  ManualClock clock;
  EventLog log(&clock, 3);
  for (const char* const text : {"1", "2", "3", "4"}) log.Add(Event("a", "", text));
  const std::vector<v1::Event> events = log.Newest({}, 10);
  EXPECT_THAT(Texts(events), ElementsAre("2", "3", "4"));
  EXPECT_EQ(events.back().sequence(), 4u);
  EXPECT_EQ(events.back().time_us(), absl::ToUnixMicros(clock.Now()));
  EXPECT_THAT(Texts(log.Newest({}, 2)), ElementsAre("3", "4"));
  EXPECT_THAT(Texts(log.Newest({}, 0)), ElementsAre());
}

TEST(EventLogTest, CountsWhatIsGoneToo) {
  ManualClock clock;
  EventLog log(&clock, 1);
  v1::Event event = Event("a", "", "text");
  event.set_kind("published");
  log.Add(event);
  log.Add(event);
  const std::vector<EventCount> counts = log.Counts();
  ASSERT_EQ(counts.size(), 1u);
  EXPECT_EQ(counts[0].run_id, "a");
  EXPECT_EQ(counts[0].kind, "published");
  EXPECT_EQ(counts[0].count, 2u);
}

TEST(EventLogTest, ShowsWhatIsAskedFor) {
  ManualClock clock;
  EventLog log(&clock);
  log.Add(Event("a", "n1", "1"));
  log.Add(Event("b", "n1", "2"));
  log.Add(Event("a", "n2", "3"));
  EXPECT_THAT(Texts(log.Newest(Filter("a", ""), 10)), ElementsAre("1", "3"));
  EXPECT_THAT(Texts(log.Newest(Filter("", "n1"), 10)), ElementsAre("1", "2"));
  EXPECT_THAT(Texts(log.After(1, Filter("a", ""), absl::ZeroDuration())), ElementsAre("3"));
  EXPECT_THAT(Texts(log.After(3, Filter("", ""), absl::ZeroDuration())), ElementsAre());
}

TEST(EventLogTest, WakesWhoeverWaits) {
  ManualClock clock;
  EventLog log(&clock);
  std::thread writer([&] { log.Add(Event("a", "", "news")); });
  EXPECT_THAT(Texts(log.After(0, {}, absl::Seconds(30))), ElementsAre("news"));
  writer.join();
}

}  // namespace
}  // namespace fedge
