#include "tests/robustness/child_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "common/base/status.h"

namespace fedge::robustness {

void ChildProcess::Start(const std::vector<std::string>& command,
                         const std::vector<std::string>& environment, const std::string& log) {
  FEDGE_CHECK(pid_ == 0);
  killed_ = false;
  exit_code_ = 0;
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  pid_ = fork();
  FEDGE_CHECK(pid_ >= 0);
  if (pid_ > 0) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int file = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  dup2(file, STDOUT_FILENO);
  dup2(file, STDERR_FILENO);
  for (const std::string& variable : environment) putenv(const_cast<char*>(variable.c_str()));
  execvp(arguments[0], arguments.data());
  _exit(127);
}

void ChildProcess::Note(int status) {
  pid_ = 0;
  killed_ = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool ChildProcess::IsRunning() {
  if (pid_ == 0) return false;
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) == 0) return true;
  Note(status);
  return false;
}

void ChildProcess::Wait() {
  if (pid_ == 0) return;
  int status = 0;
  waitpid(pid_, &status, 0);
  Note(status);
}

void ChildProcess::Terminate() {
  if (pid_ != 0) kill(pid_, SIGTERM);
}

void ChildProcess::Kill() {
  if (pid_ == 0) return;
  kill(pid_, SIGKILL);
  Wait();
}

}  // namespace fedge::robustness
