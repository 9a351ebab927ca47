// The flags of commands that need the daemon's settings: a configuration file, and what overrides
// it.
#ifndef FEDGE_CLIENT_CONFIG_FLAGS_H_
#define FEDGE_CLIENT_CONFIG_FLAGS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "client/client_settings.h"

namespace CLI {
class App;
}  // namespace CLI

namespace fedge {

struct ConfigFlags {
  std::string config;
  std::optional<std::string> server, model, model_url, data, node_id, state_dir, adapters_dir;
  std::optional<uint32_t> threads;
  bool insecure = false;
};

// `flags` must outlive the parsing.
void AddConfigFlags(CLI::App* command, ConfigFlags* flags);

// Codes of LoadConfigFile and ResolveSettings.
absl::StatusOr<ClientSettings> SettingsOf(const ConfigFlags& flags);

}  // namespace fedge

#endif  // FEDGE_CLIENT_CONFIG_FLAGS_H_
