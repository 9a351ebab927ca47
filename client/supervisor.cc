#include "client/supervisor.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/env.h"
#include "common/base/logging.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr absl::Duration kLookWhileTraining = absl::Milliseconds(250);
constexpr absl::Duration kLookWhileRefused = absl::Seconds(5);
// More between two looks is time in which this process did not run at all.
constexpr absl::Duration kLongestLook = absl::Seconds(1);
constexpr char kPausedFile[] = "paused";

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

std::string Describe(const PolicyDecision& decision, bool paused) {
  const std::string reasons = absl::StrJoin(
      decision.reasons, "; ",
      [](std::string* out, const RefusalReason& reason) { absl::StrAppend(out, reason.text); });
  return paused ? absl::StrCat("by command", reasons.empty() ? "" : "; ", reasons) : reasons;
}

}  // namespace

void BlockStopSignals() {
  const sigset_t set = StopSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

bool IsPaused(absl::string_view state_dir) {
  return Env::Posix()->Exists(JoinPath(state_dir, kPausedFile));
}

absl::Status WritePaused(absl::string_view state_dir, bool paused) {
  const std::string path = JoinPath(state_dir, kPausedFile);
  if (paused) return Env::Posix()->WriteFileAtomic(path, "");
  const absl::Status removed = Env::Posix()->Remove(path);
  return absl::IsNotFound(removed) ? absl::OkStatus() : removed;
}

absl::StatusOr<std::unique_ptr<Supervisor>> Supervisor::Start(Parts parts) {
  ASSIGN_OR_RETURN(ControlSocket socket, ControlSocket::Listen(parts.state_dir));
  const sigset_t set = StopSignals();
  const int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  const int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (signals < 0 || wake < 0) {
    return absl::InternalError(absl::StrCat("supervisor: ", std::strerror(errno)));
  }
  return std::unique_ptr<Supervisor>(
      new Supervisor(std::move(parts), std::move(socket), signals, wake));
}

Supervisor::Supervisor(Parts parts, ControlSocket socket, int signal_fd, int wake_fd)
    : parts_(std::move(parts)),
      socket_(std::move(socket)),
      signal_fd_(signal_fd),
      wake_fd_(wake_fd),
      notifier_(parts_.notifier),
      paused_(IsPaused(parts_.state_dir)) {
  thread_ = std::thread([this] { Run(); });
}

Supervisor::~Supervisor() {
  ended_ = true;
  WakeThread();
  thread_.join();
  close(signal_fd_);
  close(wake_fd_);
}

void Supervisor::WakeThread() {
  const uint64_t one = 1;
  if (write(wake_fd_, &one, sizeof(one)) < 0) errno = 0;  // full: it is awake
}

void Supervisor::WaitForEvent(bool often) {
  const absl::Duration longest =
      std::min(often ? kLookWhileTraining : absl::InfiniteDuration(), notifier_.AliveInterval());
  const bool for_ever = longest == absl::InfiniteDuration();
  pollfd fds[] = {{signal_fd_, POLLIN, 0}, {wake_fd_, POLLIN, 0}, {socket_.fd(), POLLIN, 0}};
  poll(fds, 3, for_ever ? -1 : static_cast<int>(absl::ToInt64Milliseconds(longest)));
}

void Supervisor::LookForLife(absl::Duration now) {
  const uint64_t signs = life_ + parts_.traffic->today() + parts_.clock->sleeps();
  const absl::Duration looked = std::min(now - std::exchange(looked_at_, now), kLongestLook);
  bool held = false;
  {
    absl::MutexLock lock(&mutex_);
    held = holding_;
  }
  const bool lives = !training_ || held || stopping_ || signs != life_signs_;
  life_signs_ = signs;
  without_life_ = lives ? absl::ZeroDuration() : without_life_ + looked;
  const bool hung = without_life_ >= parts_.hung_after;
  if (hung_.exchange(hung) == hung) return;
  if (hung) {
    LogError("the task hangs: no sign of life for ",
             absl::FormatDuration(absl::Trunc(without_life_, absl::Seconds(1))),
             "; systemd is to start this service again (without systemd: restart it)");
  } else {
    LogInfo("the task goes on");
  }
}

void Supervisor::Run() {
  absl::Duration kill_at = absl::InfiniteDuration();
  bool told = false;  // systemd, that it stops
  notifier_.Ready("");
  while (!ended_) {
    const bool stopping = stopping_;
    const absl::Duration now = parts_.clock->Monotonic();
    LookForLife(now);
    if (!hung_) notifier_.Alive(now);
    if (stopping && !std::exchange(told, true)) notifier_.Stopping();
    // Leaving takes a call to the server.
    if (stopping && !leaving_ && kill_at == absl::InfiniteDuration()) {
      kill_at = now + parts_.stop_deadline;
    }
    if (now >= kill_at) {
      LogWarning("stopped in the middle of what it did; what is on disk is whole");
      _exit(0);
    }
    WaitForEvent(training_ || stopping);
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
      LogInfo("stopping: ", info.ssi_signo == SIGINT ? "SIGINT" : "SIGTERM");
      Stop();
    }
    uint64_t wakes;
    if (read(wake_fd_, &wakes, sizeof(wakes)) < 0) errno = 0;
    socket_.Serve([this](absl::string_view command) { return Answer(command); });
    if (training_ && !stopping_) Look();
  }
}

void Supervisor::Stop() {
  if (stopping_.exchange(true)) return;
  parts_.gate->Close();
  parts_.clock->Stop();
  if (parts_.on_stop) parts_.on_stop();
  WakeThread();
}

void Supervisor::Look() {
  absl::MutexLock lock(&mutex_);
  DeviceConditions now = parts_.probe->Measure();
  now.bytes_today = parts_.traffic->today();
  const absl::TimeZone::CivilInfo local = absl::LocalTimeZone().At(parts_.clock->Now());
  now.minute_of_day = local.cs.hour() * 60 + local.cs.minute();
  decision_ = Decide(parts_.policy, now, decision_);
  ApplyLocked();
}

void Supervisor::ApplyLocked() {
  parts_.board->Update([&](v1::ClientStatus& status) {
    status.clear_refusals();
    for (const RefusalReason& reason : decision_.reasons) status.add_refusals(reason.text);
    status.set_paused_by_user(paused_);
  });
  const bool hold = paused_ || !MayFinish(decision_);
  if (hold == holding_) return;
  holding_ = hold;
  if (!training_) return;
  if (hold) {
    LogInfo("training is paused: ", Describe(decision_, paused_));
    parts_.board->SetState("paused", Describe(decision_, paused_));
    parts_.gate->Hold();
  } else {
    LogInfo("training goes on");
    parts_.board->SetState("training", "");
    parts_.gate->Open();
  }
}

bool Supervisor::AwaitPermission() {
  bool told = false;
  while (!stopping_) {
    Look();
    std::string why;
    {
      absl::MutexLock lock(&mutex_);
      if (decision_.allowed() && !paused_) break;
      why = Describe(decision_, paused_);
    }
    if (!std::exchange(told, true)) LogInfo("waiting: ", why);
    parts_.board->SetState("paused", why);
    parts_.clock->Sleep(kLookWhileRefused);
  }
  if (told && !stopping_) LogInfo("going on");
  return !stopping_;
}

void Supervisor::SetTraining(bool training) {
  if (training_.exchange(training) == training) return;
  absl::MutexLock lock(&mutex_);
  if (training && holding_) {
    parts_.gate->Hold();
    parts_.board->SetState("paused", Describe(decision_, paused_));
  }
  if (!training) parts_.gate->Open();
  WakeThread();
}

bool Supervisor::HoldTransfers() {
  absl::MutexLock lock(&mutex_);
  return decision_.Has(Refusal::kMetered);
}

std::optional<double> Supervisor::Joules() {
  absl::MutexLock lock(&mutex_);
  return parts_.probe->Joules();
}

void Supervisor::SetPaused(bool paused) {
  {
    absl::MutexLock lock(&mutex_);
    paused_ = paused;
    ApplyLocked();
  }
  parts_.clock->Wake();
}

std::string Supervisor::Answer(absl::string_view command) {
  if (command == "status") {
    v1::ClientStatus status = parts_.board->Get();
    status.set_pid(getpid());
    status.set_bytes_today(parts_.traffic->today());
    return status.SerializeAsString();
  }
  if (command == "pause" || command == "resume") {
    const bool pause = command == "pause";
    const absl::Status written = WritePaused(parts_.state_dir, pause);
    LogInfo("command: ", command);
    SetPaused(pause);
    if (!written.ok()) {
      return absl::StrCat("error: a restart will not know of it: ", written.message());
    }
    return "ok";
  }
  if (command == "leave") {
    LogInfo("command: leave");
    leaving_ = true;
    Stop();
    return "ok";
  }
  return "error: this daemon does not know the command; is it of another version?";
}

}  // namespace fedge
