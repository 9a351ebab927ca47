// The daemon's settings, checked once: what configuration file and flags say, with the defaults in
// place.
#ifndef FEDGE_CLIENT_CLIENT_SETTINGS_H_
#define FEDGE_CLIENT_CLIENT_SETTINGS_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/device_policy.h"
#include "fedge/v1/client.pb.h"

namespace fedge {

struct ClientSettings {
  std::string server;      // "host:port"; empty: the one this device joined
  bool insecure = false;   // plaintext, to a server on this machine only
  std::string server_key;  // 32 bytes: whose versions are loaded; empty: the kept one
  std::string data;
  std::string model;      // empty: fetched
  std::string model_url;  // empty: from the server
  std::string node_id;    // empty: the one it joined as
  std::string state_dir;
  std::string adapters_dir;
  std::string on_new_adapter;  // empty: none
  bool stay = false;           // after a run, wait for the next one
  int threads = 0;             // 0: all processors
  int64_t memory_limit_bytes = 0;
  absl::Duration checkpoint_interval;
  DevicePolicy policy;
};

inline constexpr char kDefaultStateDir[] = "fedge-client-state";

// InvalidArgument names the field, what it is and what it may be.
absl::StatusOr<ClientSettings> ResolveSettings(const v1::ClientConfig& config);

// What this process may use at most: the smaller of the machine's memory and its cgroup's limits,
// read below `root` ("" on a device); 0 when neither is known.
int64_t UsableMemoryBytes(const std::string& root);

}  // namespace fedge

#endif  // FEDGE_CLIENT_CLIENT_SETTINGS_H_
