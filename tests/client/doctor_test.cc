#include "client/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/client/fake_server.h"
#include "tests/server/temporary_dir.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

class GoodDevice : public DeviceProbe {
 public:
  DeviceConditions Measure() override { return conditions; }
  std::optional<double> Joules() override { return std::nullopt; }
  DeviceConditions conditions;
};

class DoctorTest : public ::testing::Test {
 protected:
  DoctorTest() {
    settings_.server = "localhost:9480";
    settings_.state_dir = dir_.File("state");
    settings_.data = dir_.File("data.txt");
    settings_.model = testing::WriteTinyModel(dir_.path(), {});
    settings_.memory_limit_bytes = 1'000'000'000;
    EXPECT_TRUE(Env::Posix()->WriteFileAtomic(settings_.data, "some words\n").ok());
    probe_.conditions.free_disk_bytes = 1'000'000'000;
    const std::string model = Env::Posix()->ReadFile(settings_.model).value();
    *server_.answer.mutable_base_model()->mutable_content() = server_.Offer(model);
    server_.answer.mutable_base_model()->set_served(true);
    server_.answer.set_server_time_ms(absl::ToUnixMillis(clock_.Now()));
  }
  // The first trouble; none: 0 and "".
  std::pair<int, std::string> Trouble() {
    const auto findings = Examine(settings_, {&server_, nullptr, &probe_, &clock_, Env::Posix()});
    EXPECT_EQ(findings.size(), 10u);
    for (const Finding& finding : findings) {
      EXPECT_EQ(finding.good, finding.remedy.empty());
      if (!finding.good) return {static_cast<int>(finding.check), finding.detail};
    }
    return {0, ""};
  }

  testing::TemporaryDir dir_;
  ClientSettings settings_;
  testing::FakeServer server_;
  GoodDevice probe_;
  ManualClock clock_;
};

TEST_F(DoctorTest, FindsNothingWhereAllIsWell) { EXPECT_EQ(Trouble().first, 0); }

TEST_F(DoctorTest, NamesEachTroubleByItsCode) {
  settings_.state_dir = "/proc/none";
  EXPECT_EQ(Trouble().first, 10);
  settings_.state_dir = dir_.File("state");

  probe_.conditions.free_disk_bytes = 1'000'000;
  EXPECT_EQ(Trouble(), std::make_pair(11, std::string("1 MB free")));
  probe_.conditions.free_disk_bytes = 1'000'000'000;

  settings_.memory_limit_bytes = 1'000'000;
  EXPECT_EQ(Trouble().first, 12);
  settings_.memory_limit_bytes = 1'000'000'000;

  clock_.Advance(absl::Hours(24));
  EXPECT_EQ(Trouble(), std::make_pair(13, std::string("24h from the server's")));
  server_.answer.set_server_time_ms(absl::ToUnixMillis(clock_.Now()));

  settings_.server = std::string(70, 'x') + ":9480";  // no label is so long: nobody is asked
  EXPECT_EQ(Trouble().first, 14);
  settings_.server = "localhost:9480";

  server_.check_in_errors = {absl::UnavailableError("no server")};
  EXPECT_EQ(Trouble(), std::make_pair(15, std::string("no server")));

  const std::string model = settings_.model;
  settings_.model = dir_.File("none.gguf");
  EXPECT_EQ(Trouble().first, 16);
  settings_.model = model;
  server_.answer.mutable_base_model()->mutable_content()->set_sha256(std::string(32, 'x'));
  EXPECT_THAT(Trouble().second, HasSubstr("the server's is 7878"));
  server_.answer.clear_outcome();

  settings_.data = dir_.File("none.txt");
  EXPECT_EQ(Trouble().first, 17);
  settings_.data = dir_.File("data.txt");

  probe_.conditions.throttled = true;
  EXPECT_EQ(Trouble().first, 18);
}

TEST_F(DoctorTest, AModelThatWillBeFetchedIsFine) {
  settings_.model.clear();
  EXPECT_EQ(Trouble().first, 0);
  server_.answer.mutable_base_model()->set_served(false);
  EXPECT_EQ(Trouble().first, 16);
}

}  // namespace
}  // namespace fedge
