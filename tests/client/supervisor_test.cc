#include "client/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "client/state_lock.h"
#include "common/base/logging.h"
#include "common/base/thread_pool.h"
#include "tests/server/temporary_dir.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class SettableProbe : public DeviceProbe {
 public:
  DeviceConditions Measure() override {
    DeviceConditions now;
    now.temperature_celsius = temperature.load();
    return now;
  }
  std::optional<double> Joules() override { return std::nullopt; }
  std::atomic<double> temperature{40};
};

class SupervisorTest : public ::testing::Test {
 protected:
  SupervisorTest() : traffic_(dir_.File("traffic"), Env::Posix(), &clock_), board_(&clock_) {
    SetLogLevel(LogLevel::kOff);
    parts_.probe = &probe_;
    parts_.traffic = &traffic_;
    parts_.clock = &clock_;
    parts_.gate = &gate_;
    parts_.board = &board_;
    parts_.state_dir = dir_.path();
    parts_.stop_deadline = absl::InfiniteDuration();
  }

  v1::ClientStatus Status() {
    v1::ClientStatus status;
    const auto answer = AskDaemon(dir_.path(), "status");
    EXPECT_TRUE(answer.ok()) << answer.status();
    EXPECT_TRUE(status.ParseFromString(answer.value_or("")));
    return status;
  }

  testing::TemporaryDir dir_;
  WakeableClock clock_;
  WorkGate gate_;
  SettableProbe probe_;
  DailyTraffic traffic_;
  StatusBoard board_;
  Supervisor::Parts parts_;
};

TEST_F(SupervisorTest, HoldsTrainingWhenItIsTooHotAndLetsItGoOn) {
  auto supervisor = Supervisor::Start(parts_).value();
  ThreadPool pool(2);
  pool.set_gate(&gate_);
  supervisor->SetTraining(true);
  std::atomic<int64_t> done{0};
  std::atomic<bool> stop{false};
  std::thread training([&] {
    while (!stop) pool.ParallelFor(2, [&](int64_t) { ++done; });
  });
  probe_.temperature = 90;
  while (Status().state() != "paused") std::this_thread::yield();
  EXPECT_THAT(Status().refusals(), ElementsAre("90 degrees, the limit is 80"));
  probe_.temperature = 60;
  while (Status().state() != "training") std::this_thread::yield();
  const int64_t before = done;
  while (done == before) std::this_thread::yield();
  stop = true;
  training.join();
  EXPECT_GT(gate_.held_time(), absl::ZeroDuration());
}

TEST_F(SupervisorTest, PausesByCommandOverARestartUntilResume) {
  {
    auto supervisor = Supervisor::Start(parts_).value();
    EXPECT_TRUE(supervisor->AwaitPermission());
    EXPECT_EQ(AskDaemon(dir_.path(), "pause").value(), "ok");
    EXPECT_TRUE(Status().paused_by_user());
  }
  auto supervisor = Supervisor::Start(parts_).value();
  std::thread resume([&] {
    while (Status().state() != "paused") std::this_thread::yield();
    EXPECT_EQ(AskDaemon(dir_.path(), "resume").value(), "ok");
  });
  EXPECT_TRUE(supervisor->AwaitPermission());
  resume.join();
  EXPECT_FALSE(IsPaused(dir_.path()));
}

TEST_F(SupervisorTest, AStopEndsWaitsWorkAndCalls) {
  std::atomic<int> interrupted{0};
  parts_.on_stop = [&] { ++interrupted; };
  auto supervisor = Supervisor::Start(parts_).value();
  probe_.temperature = 90;
  std::thread stop([&] {
    while (Status().state() != "paused") std::this_thread::yield();
    supervisor->Stop();
  });
  EXPECT_FALSE(supervisor->AwaitPermission());
  stop.join();
  clock_.Sleep(absl::Hours(1));  // returns at once
  EXPECT_TRUE(gate_.closed());
  EXPECT_TRUE(supervisor->stopping());
  EXPECT_FALSE(supervisor->leaving());
  supervisor->Stop();
  EXPECT_EQ(interrupted, 1);
}

TEST_F(SupervisorTest, LeaveStopsAndOtherWordsAreRefused) {
  auto supervisor = Supervisor::Start(parts_).value();
  EXPECT_THAT(AskDaemon(dir_.path(), "dance").value(), HasSubstr("does not know the command"));
  EXPECT_FALSE(supervisor->stopping());
  EXPECT_EQ(AskDaemon(dir_.path(), "leave").value(), "ok");
  EXPECT_TRUE(supervisor->stopping());
  EXPECT_TRUE(supervisor->leaving());
}

TEST_F(SupervisorTest, OnlyItsOwnerReachesIt) {
  auto supervisor = Supervisor::Start(parts_).value();
  struct stat info;
  ASSERT_EQ(stat(dir_.File("control.sock").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  supervisor.reset();
  EXPECT_EQ(AskDaemon(dir_.path(), "status").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SupervisorTest, AFolderWithALongNameHasASocketToo) {
  parts_.state_dir = dir_.File(std::string(120, 'x'));
  ASSERT_TRUE(Env::Posix()->CreateDirs(parts_.state_dir).ok());
  auto supervisor = Supervisor::Start(parts_);
  ASSERT_TRUE(supervisor.ok()) << supervisor.status();
  EXPECT_TRUE(AskDaemon(parts_.state_dir, "status").ok());
}

TEST_F(SupervisorTest, TellsSystemdThatItIsUpAliveAndStopping) {
  const std::string path = dir_.File("notify");
  const int manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  ASSERT_LT(path.size(), sizeof(address.sun_path));
  path.copy(address.sun_path, path.size());
  ASSERT_EQ(bind(manager, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  setenv("NOTIFY_SOCKET", path.c_str(), 1);
  setenv("WATCHDOG_USEC", "30000", 1);
  unsetenv("WATCHDOG_PID");
  parts_.notifier = SystemdNotifier::FromEnvironment();
  const auto next = [&] {
    char buffer[256];
    const ssize_t size = recv(manager, buffer, sizeof(buffer), 0);
    return size < 0 ? "" : std::string(buffer, static_cast<size_t>(size));
  };
  auto supervisor = Supervisor::Start(parts_).value();
  EXPECT_THAT(next(), StartsWith("READY=1\n"));
  // Also while nothing happens.
  for (int i = 0; i < 3; ++i) EXPECT_EQ(next(), "WATCHDOG=1");
  supervisor->Stop();
  std::string told = next();
  while (told == "WATCHDOG=1") told = next();
  EXPECT_EQ(told, "STOPPING=1");
  supervisor.reset();
  close(manager);
}

TEST_F(SupervisorTest, ATaskThatHangsIsNotCalledAlive) {
  parts_.hung_after = absl::Milliseconds(600);
  auto supervisor = Supervisor::Start(parts_).value();
  EXPECT_FALSE(supervisor->hung());
  supervisor->SetTraining(true);
  while (!supervisor->hung()) std::this_thread::yield();
  const auto lives_by = [&](const std::function<void()>& sign) {
    while (!supervisor->hung()) std::this_thread::yield();
    while (supervisor->hung()) sign();
  };
  lives_by([&] { supervisor->NoteLife(); });
  lives_by([&] { clock_.Sleep(absl::Milliseconds(1)); });
  lives_by([&] { traffic_.Add(1); });
  // Who is held does not hang, nor who has nothing to do.
  lives_by([&] { probe_.temperature = 90; });
  probe_.temperature = 40;
  lives_by([&] { supervisor->SetTraining(false); });
}

TEST(StateLockTest, TheSecondIsRefusedAndTheLockEndsWithItsOwner) {
  const testing::TemporaryDir dir;
  EXPECT_EQ(StateLock::Holder(dir.path()), 0);
  {
    const auto first = StateLock::Take(dir.path());
    ASSERT_TRUE(first.ok()) << first.status();
    EXPECT_EQ(StateLock::Holder(dir.path()), getpid());
    const auto second = StateLock::Take(dir.path());
    EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
    EXPECT_THAT(second.status().message(),
                HasSubstr(absl::StrCat("another fedge-client (process ", getpid(), ")")));
  }
  EXPECT_EQ(StateLock::Holder(dir.path()), 0);
  EXPECT_TRUE(StateLock::Take(dir.path()).ok());
  EXPECT_EQ(StateLock::Take(dir.File("none")).status().code(), absl::StatusCode::kNotFound);
}

TEST(WakeableClockTest, AWakeEndsOneSleepAndAStopEndsAll) {
  WakeableClock clock;
  std::atomic<int> slept{0};
  std::thread sleeper([&] {
    clock.Sleep(absl::Hours(1));
    ++slept;
    clock.Sleep(absl::InfiniteDuration());
    ++slept;
  });
  while (slept == 0) {
    clock.Wake();
    std::this_thread::yield();
  }
  clock.Stop();
  sleeper.join();
  EXPECT_EQ(slept, 2);
}

}  // namespace
}  // namespace fedge
