#include "client/hook_command.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/env.h"
#include "common/base/logging.h"

namespace fedge {

HookCommand::~HookCommand() {
  int status = 0;
  if (pid_ > 0 && waitpid(pid_, &status, WNOHANG) == pid_) Note(status);
}

void HookCommand::Run(const std::string& adapters_dir, const v1::AdapterChoice& choice) {
  if (command_.empty()) return;
  adapters_dir_ = adapters_dir;
  choice_ = choice;
  due_ = true;
  Look();
}

void HookCommand::Look() {
  int status = 0;
  if (pid_ > 0) {
    if (waitpid(pid_, &status, WNOHANG) != pid_) return;
    Note(status);
  }
  if (due_) Start();
}

void HookCommand::Wait() {
  int status = 0;
  if (pid_ > 0 && waitpid(pid_, &status, 0) == pid_) Note(status);
}

void HookCommand::Note(int wait_status) {
  pid_ = 0;
  if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0) return;
  LogWarning("on_new_adapter: the command ended with ",
             WIFSIGNALED(wait_status) ? absl::StrCat("signal ", WTERMSIG(wait_status))
                                      : absl::StrCat("exit code ", WEXITSTATUS(wait_status)));
}

void HookCommand::Start() {
  due_ = false;
  std::vector<std::string> environment = {
      absl::StrCat("FEDGE_ADAPTER=", JoinPath(adapters_dir_, "current")),
      absl::StrCat("FEDGE_BEST_ADAPTER=", JoinPath(adapters_dir_, "best")),
      absl::StrCat("FEDGE_ADAPTER_VERSION=", choice_.version()),
      absl::StrCat("FEDGE_BEST=", choice_.best()),
  };
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!absl::StartsWith(*variable, "FEDGE_")) environment.emplace_back(*variable);
  }
  std::vector<char*> pointers;
  for (std::string& variable : environment) pointers.push_back(variable.data());
  pointers.push_back(nullptr);
  // The daemon blocks the stop signals; its children are to be stoppable.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  std::string shell = "/bin/sh", flag = "-c", command = command_;
  char* arguments[] = {shell.data(), flag.data(), command.data(), nullptr};
  const int error =
      posix_spawn(&pid_, shell.c_str(), nullptr, &attributes, arguments, pointers.data());
  posix_spawnattr_destroy(&attributes);
  if (error == 0) return;
  pid_ = 0;
  LogWarning("on_new_adapter: cannot start the command: ", std::strerror(error));
}

}  // namespace fedge
