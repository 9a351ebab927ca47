// A program that was started, and may be killed.
#ifndef FEDGE_TESTS_ROBUSTNESS_CHILD_PROCESS_H_
#define FEDGE_TESTS_ROBUSTNESS_CHILD_PROCESS_H_

#include <sys/types.h>

#include <string>
#include <vector>

namespace fedge::robustness {

// Not thread-safe. A child does not outlive its parent.
class ChildProcess {
 public:
  // Its output and errors are appended to `log`; `environment`: additional "NAME=value"s.
  void Start(const std::vector<std::string>& command, const std::vector<std::string>& environment,
             const std::string& log);
  ~ChildProcess() { Kill(); }

  // Looks once; the results below are valid when it says false.
  bool IsRunning();
  void Terminate();  // SIGTERM
  void Kill();       // SIGKILL, and waits
  void Wait();

  bool killed() const { return killed_; }          // ended by SIGKILL
  int exit_code() const { return exit_code_; }     // when it ended by itself
  bool crashed() const { return exit_code_ < 0; }  // by any signal

 private:
  void Note(int status);

  pid_t pid_ = 0;
  bool killed_ = false;
  int exit_code_ = 0;
};

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_CHILD_PROCESS_H_
