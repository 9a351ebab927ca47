// The daemon: everything of a device put together around the participant, from the lock on its
// state folder to the adapter files it keeps for others.
#ifndef FEDGE_CLIENT_DAEMON_H_
#define FEDGE_CLIENT_DAEMON_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/client_settings.h"
#include "common/base/env.h"

namespace fedge {

struct DaemonOptions {
  absl::Duration patience = absl::InfiniteDuration();  // with a server that does not answer
  bool once = false;                                   // end after one task, or when there is none
};

// Takes part until the run is over, SIGTERM, SIGINT or a command stops it (OK too), or something
// cannot be helped: a file that is wrong, a server that refuses this device or stays away longer
// than the patience. Call BlockStopSignals first.
absl::Status RunDaemon(const ClientSettings& settings, const DaemonOptions& options, Env& env);

}  // namespace fedge

#endif  // FEDGE_CLIENT_DAEMON_H_
