#include "client/config_flags.h"

#include "CLI/CLI.hpp"
#include "common/base/env.h"
#include "common/base/status.h"
#include "common/config/config_file.h"
#include "common/config/config_places.h"

namespace fedge {

void AddConfigFlags(CLI::App* command, ConfigFlags* flags) {
  command
      ->add_option("--config", flags->config,
                   "Settings (YAML or JSON; fedge-client --help-config); flags override them")
      ->type_name("FILE");
  command
      ->add_option("--server", flags->server,
                   "Address of fedge-server (default: the one this device joined)")
      ->type_name("HOST:PORT");
  command->add_flag("--insecure", flags->insecure,
                    "Plaintext, without having joined; for a --server on this machine only");
  command
      ->add_option("--data", flags->data, "Local data: a JSONL or text file, or a folder of them")
      ->type_name("PATH");
  command
      ->add_option("--model", flags->model,
                   "Base model (GGUF), the same file as the server's (default: it is fetched)")
      ->type_name("FILE");
  command
      ->add_option("--model-url", flags->model_url,
                   "Cache to fetch the base model from: http://host/file.gguf or http://host/dir/")
      ->type_name("URL");
  command->add_option(
      "--node-id", flags->node_id,
      "Name of this node (default: the one it joined as; with --insecure the host's)");
  command->add_option("--state-dir", flags->state_dir, "What the node keeps")->type_name("DIR");
  command
      ->add_option("--out", flags->adapters_dir,
                   "Adapters for other programs: current/ and best/ (default: STATE_DIR/adapters)")
      ->type_name("DIR");
  command->add_option("--threads", flags->threads, "Training threads; 0: all processors");
}

absl::StatusOr<ClientSettings> SettingsOf(const ConfigFlags& flags) {
  v1::ClientConfig config;
  ConfigPlaces places;
  if (!flags.config.empty()) {
    RETURN_IF_ERROR(LoadConfigFile(flags.config, *Env::Posix(), config, &places));
  }
  if (flags.server) config.set_server(*flags.server);
  if (flags.model) config.set_model(*flags.model);
  if (flags.model_url) config.set_model_url(*flags.model_url);
  if (flags.data) config.set_data(*flags.data);
  if (flags.node_id) config.set_node_id(*flags.node_id);
  if (flags.state_dir) config.set_state_dir(*flags.state_dir);
  if (flags.adapters_dir) config.set_adapters_dir(*flags.adapters_dir);
  if (flags.insecure) config.set_insecure(true);
  if (flags.threads) {
    config.set_threads(*flags.threads);
    places.Override("threads");
  }
  absl::StatusOr<ClientSettings> settings = ResolveSettings(config);
  if (!settings.ok()) return places.Locate(settings.status());
  return settings;
}

}  // namespace fedge
