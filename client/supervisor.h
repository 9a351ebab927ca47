// The daemon's second thread: looks at the device while training runs and holds it at once when the
// policy says so, takes commands and signals, tells systemd that the service is up and, as long as
// the work gets on, alive, and sees to it that a stop does not take long.
#ifndef FEDGE_CLIENT_SUPERVISOR_H_
#define FEDGE_CLIENT_SUPERVISOR_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/control_socket.h"
#include "client/device_policy.h"
#include "client/device_probe.h"
#include "client/metered_link.h"
#include "client/status_board.h"
#include "client/wakeable_clock.h"
#include "common/base/systemd_notifier.h"
#include "common/base/work_gate.h"

namespace fedge {

// SIGTERM, SIGINT: blocked from here on in this thread and those it starts, so that a Supervisor
// can wait for them. Call before any thread is started.
void BlockStopSignals();

// Thread-safe.
class Supervisor {
 public:
  // All borrowed; they must outlive it.
  struct Parts {
    DevicePolicy policy;
    DeviceProbe* probe = nullptr;
    DailyTraffic* traffic = nullptr;
    WakeableClock* clock = nullptr;
    WorkGate* gate = nullptr;  // of the training's pool
    StatusBoard* board = nullptr;
    std::string state_dir;
    SystemdNotifier notifier;
    std::function<void()> on_stop;  // may be empty; from the thread, once
    // A process that has not ended so long after it was told to is ended (exit code 0): whatever
    // it does, its disk is whole at any time. Infinite: never.
    absl::Duration stop_deadline = absl::Seconds(10);
    // A task that shows no sign of life for so long (no step, no byte, no pause) hangs: systemd is
    // not told any more that all is well. Longer than any step or call may take.
    absl::Duration hung_after = absl::Hours(1);
  };
  static absl::StatusOr<std::unique_ptr<Supervisor>> Start(Parts parts);
  ~Supervisor();

  // Waits until the policy and the user allow work; false: stopping.
  bool AwaitPermission();
  // Training runs: look often. Otherwise the thread sleeps.
  void SetTraining(bool training);
  void NoteLife() { ++life_; }  // the task got on by a step
  void Stop();                  // as SIGTERM

  bool stopping() const { return stopping_.load(); }
  bool leaving() const { return leaving_.load(); }  // stopped by `leave`
  bool HoldTransfers();                             // a metered link that must not be used
  std::optional<double> Joules();                   // as DeviceProbe::Joules
  bool hung() const { return hung_.load(); }

 private:
  Supervisor(Parts parts, ControlSocket socket, int signal_fd, int wake_fd);

  void Run();
  void WaitForEvent(bool often);
  void LookForLife(absl::Duration now);
  // Measures, decides, and holds or opens the gate.
  void Look();
  void ApplyLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetPaused(bool paused);
  std::string Answer(absl::string_view command);
  void WakeThread();

  const Parts parts_;
  ControlSocket socket_;
  const int signal_fd_;
  const int wake_fd_;
  // Of the thread.
  SystemdNotifier notifier_;
  uint64_t life_signs_ = 0;
  absl::Duration looked_at_;
  absl::Duration without_life_;

  std::atomic<uint64_t> life_{0};
  std::atomic<bool> hung_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> leaving_{false};
  std::atomic<bool> ended_{false};
  std::atomic<bool> training_{false};
  absl::Mutex mutex_;
  PolicyDecision decision_ ABSL_GUARDED_BY(mutex_);
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;  // by the user
  bool holding_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// Whether the user paused the daemon of this folder, running or not.
bool IsPaused(absl::string_view state_dir);
absl::Status WritePaused(absl::string_view state_dir, bool paused);

}  // namespace fedge

#endif  // FEDGE_CLIENT_SUPERVISOR_H_
