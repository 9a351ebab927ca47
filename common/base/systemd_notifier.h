// What systemd (Type=notify, WatchdogSec=) is told of this service, by the protocol of
// sd_notify(3): datagrams to the socket that NOTIFY_SOCKET names. Without it nothing happens.
#ifndef FEDGE_COMMON_BASE_SYSTEMD_NOTIFIER_H_
#define FEDGE_COMMON_BASE_SYSTEMD_NOTIFIER_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace fedge {

// Not thread-safe.
class SystemdNotifier {
 public:
  // Of NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. Takes them out of the environment, so that
  // commands this process starts do not speak for it.
  static SystemdNotifier FromEnvironment();

  // The service is up; `status` is one line for `systemctl status`.
  void Ready(absl::string_view status);
  void Status(absl::string_view status);
  void Stopping();
  // The service works; call it often, only when it does. Sends three times in the time after
  // which systemd would restart the service.
  void Alive(absl::Duration now);
  // How often Alive sends; infinite without a watchdog.
  absl::Duration AliveInterval() const;

 private:
  void Send(absl::string_view state) const;

  std::string socket_;  // "/path" or "@abstract"; empty: none
  absl::Duration watchdog_ = absl::ZeroDuration();
  std::optional<absl::Duration> last_alive_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_SYSTEMD_NOTIFIER_H_
