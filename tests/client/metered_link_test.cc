#include "client/metered_link.h"

#include <gtest/gtest.h>

#include "client/client_settings.h"
#include "tests/client/fake_server.h"
#include "tests/server/temporary_dir.h"

namespace fedge {
namespace {

TEST(DailyTrafficTest, CountsADayOverRestartsAndBeginsAnewWithTheNext) {
  const testing::TemporaryDir dir;
  ManualClock clock;
  {
    DailyTraffic traffic(dir.File("traffic"), Env::Posix(), &clock);
    traffic.Add(100);
    traffic.Add(23);
    ASSERT_TRUE(traffic.Save().ok());
  }
  DailyTraffic traffic(dir.File("traffic"), Env::Posix(), &clock);
  EXPECT_EQ(traffic.today(), 123u);
  clock.Advance(absl::Hours(24));
  EXPECT_EQ(traffic.today(), 0u);
  traffic.Add(5);
  EXPECT_EQ(DailyTraffic(dir.File("traffic"), Env::Posix(), &clock).today(), 0u);
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(dir.File("traffic"), "what is this\n").ok());
  EXPECT_EQ(DailyTraffic(dir.File("traffic"), Env::Posix(), &clock).today(), 0u);
}

TEST(MeteredLinkTest, CountsMessagesContentAndOverhead) {
  const testing::TemporaryDir dir;
  ManualClock clock;
  DailyTraffic traffic(dir.File("traffic"), Env::Posix(), &clock);
  testing::FakeServer server;
  MeteredLink link(&server, &traffic);
  v1::CheckInRequest request;
  request.set_node_id("alpha");
  server.answer.mutable_retry()->set_min_delay_ms(7);
  ASSERT_TRUE(link.CheckIn(request).ok());
  uint64_t expected = kCallOverheadBytes + request.ByteSizeLong() + server.answer.ByteSizeLong();
  EXPECT_EQ(traffic.today(), expected);

  const v1::ContentRef content = server.Offer(std::string(1000, 'x'));
  v1::DownloadRequest download;
  download.set_sha256(content.sha256());
  ASSERT_TRUE(link.Download(download, [](const v1::Chunk&) { return absl::OkStatus(); }).ok());
  EXPECT_GT(traffic.today(), expected + kCallOverheadBytes + 1000);
  EXPECT_LT(traffic.today(), expected + kCallOverheadBytes + 1400);

  expected = traffic.today();
  v1::UploadId id;
  id.set_sha256(Sha256Of("0123456789").Raw());
  ASSERT_TRUE(link.Upload(id, {}, "0123456789", 0).ok());
  EXPECT_EQ(traffic.today(), expected + kCallOverheadBytes + id.ByteSizeLong() + 10);
}

TEST(ClientSettingsTest, FillsInDefaultsAndNamesWhatIsMissingOrWrong) {
  v1::ClientConfig config;
  EXPECT_EQ(ResolveSettings(config).status().message(),
            "data is missing: give --data PATH, or `data:` in the file of --config");
  config.set_data("notes");
  const auto settings = ResolveSettings(config);
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_TRUE(settings->node_id.empty());
  config.set_insecure(true);
  EXPECT_FALSE(ResolveSettings(config)->node_id.empty());
  EXPECT_EQ(settings->state_dir, "fedge-client-state");
  EXPECT_EQ(settings->adapters_dir, "fedge-client-state/adapters");
  EXPECT_GT(settings->memory_limit_bytes, 0);
  EXPECT_EQ(settings->checkpoint_interval, absl::Seconds(60));
  config.set_memory_limit("600MB");
  EXPECT_EQ(ResolveSettings(config)->memory_limit_bytes, 600'000'000);
  config.set_memory_limit("little");
  EXPECT_EQ(ResolveSettings(config).status().code(), absl::StatusCode::kInvalidArgument);
  config.clear_memory_limit();
  config.set_checkpoint_seconds(-1);
  EXPECT_EQ(ResolveSettings(config).status().code(), absl::StatusCode::kInvalidArgument);
  config.set_checkpoint_seconds(0);
  config.set_threads(5000);
  EXPECT_EQ(ResolveSettings(config).status().message(), "threads: 5000, at most 1024");
}

TEST(ClientSettingsTest, TheSmallestLimitOfTheControlGroupsCounts) {
  const testing::TemporaryDir root;
  const auto put = [&](const std::string& path, const std::string& text) {
    ASSERT_TRUE(Env::Posix()->CreateDirs(DirName(root.File(path))).ok());
    ASSERT_TRUE(Env::Posix()->WriteFileAtomic(root.File(path), text).ok());
  };
  EXPECT_EQ(UsableMemoryBytes(root.path()), UsableMemoryBytes("/nowhere"));
  put("proc/self/cgroup", "0::/a.slice/b.service\n");
  put("sys/fs/cgroup/a.slice/b.service/memory.max", "max\n");
  put("sys/fs/cgroup/a.slice/memory.max", "5000000\n");
  EXPECT_EQ(UsableMemoryBytes(root.path()), 5'000'000);
  put("proc/self/cgroup", "7:memory:/box\n0::/\n");
  put("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "4000000\n");
  EXPECT_EQ(UsableMemoryBytes(root.path()), 4'000'000);
}

}  // namespace
}  // namespace fedge
