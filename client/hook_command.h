// The owner's command after each new adapter: say, to make the device's own llama.cpp load it.
#ifndef FEDGE_CLIENT_HOOK_COMMAND_H_
#define FEDGE_CLIENT_HOOK_COMMAND_H_

#include <sys/types.h>

#include <string>
#include <utility>

#include "fedge/v1/client.pb.h"

namespace fedge {

// Not thread-safe.
class HookCommand {
 public:
  // `command`: for /bin/sh; empty: nothing is ever run.
  explicit HookCommand(std::string command) : command_(std::move(command)) {}
  ~HookCommand();

  // Starts the command and does not wait: with FEDGE_ADAPTER (the folder of the global adapter),
  // FEDGE_BEST_ADAPTER, FEDGE_ADAPTER_VERSION and FEDGE_BEST ("global" or "personal") set. A run
  // that has not ended is not disturbed: the next one comes when it has, for what is then newest.
  void Run(const std::string& adapters_dir, const v1::AdapterChoice& choice);
  // Starts what had to wait. Logs how the last run ended if that was not well.
  void Look();
  void Wait();  // for the run under way

 private:
  void Start();
  void Note(int wait_status);

  const std::string command_;
  std::string adapters_dir_;
  v1::AdapterChoice choice_;
  bool due_ = false;
  pid_t pid_ = 0;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_HOOK_COMMAND_H_
