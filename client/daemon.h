// The loop of fedge-client: load model and data, then take step after step until the run is over.
#ifndef FEDGE_CLIENT_DAEMON_H_
#define FEDGE_CLIENT_DAEMON_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "client/participant.h"
#include "common/base/env.h"

namespace fedge {

struct DaemonOptions {
  std::string server;     // "host:port"; empty: the one this device joined
  bool insecure = false;  // plaintext, to a server on this machine only
  std::string model;
  std::string data;
  std::string node_id;  // of a device that joined: empty, or its own
  std::string state_dir = "fedge-client-state";
  std::string out_dir;  // empty: state_dir
  int threads = 0;      // 0: all processors
  int64_t patience_seconds = 600;
  bool once = false;
  std::function<bool()> stopping;  // asked often; true ends the daemon cleanly
};

// Takes steps until the run is over, `stopping` says so (OK too), or something cannot be helped: a
// file that is wrong, a server that was never there or stays away longer than the patience, or one
// that refuses this device. At the end of the run the final adapter is in `out_dir`, as
// adapter.gguf and peft/.
absl::Status RunDaemon(const DaemonOptions& options, Env& env);

// The loop alone, over any participant: returns when it is finished, stopped or beyond patience.
// `*finished` tells whether the run is over.
absl::Status RunSteps(const DaemonOptions& options, Participant& participant,
                      Transformer& transformer, Clock& clock, bool* finished);

// Writes `adapter` to <dir>/adapter.gguf and <dir>/peft/.
absl::Status WriteAdapterBothWays(const LoraAdapter& adapter, const BaseModel& base,
                                  const std::string& base_name, const std::string& dir, Env& env);

}  // namespace fedge

#endif  // FEDGE_CLIENT_DAEMON_H_
