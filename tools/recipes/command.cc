#include "tools/recipes/command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "common/base/status.h"

extern char** environ;

namespace fedge {
namespace {

constexpr size_t kErrorTailBytes = size_t{64} << 10;

class Pipe {
 public:
  Pipe() = default;
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  ~Pipe() {
    CloseRead();
    CloseWrite();
  }
  bool Open() { return pipe2(ends_.data(), O_CLOEXEC) == 0; }
  int read_end() const { return ends_[0]; }
  int write_end() const { return ends_[1]; }
  void CloseRead() { CloseEnd(0); }
  void CloseWrite() { CloseEnd(1); }

 private:
  void CloseEnd(size_t i) {
    if (ends_[i] >= 0) close(ends_[i]);
    ends_[i] = -1;
  }
  std::array<int, 2> ends_ = {-1, -1};
};

// The caller's environment in the C locale: messages that are searched must not be translated.
std::vector<std::string> EnglishEnvironment() {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const absl::string_view text(*entry);
    if (!absl::StartsWith(text, "LC_ALL=") && !absl::StartsWith(text, "LANGUAGE=")) {
      result.emplace_back(text);
    }
  }
  result.emplace_back("LC_ALL=C");
  return result;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  result.reserve(strings.size() + 1);
  for (std::string& s : strings) result.push_back(s.data());
  result.push_back(nullptr);
  return result;
}

// Starts argv; returns 0 or an errno.
int Spawn(std::vector<std::string> argv, const Pipe& out, const Pipe& err, pid_t* pid) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out.write_end(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err.write_end(), STDERR_FILENO);
  std::vector<std::string> environment = EnglishEnvironment();
  std::vector<char*> argument_pointers = Pointers(argv);
  std::vector<char*> environment_pointers = Pointers(environment);
  const int error = posix_spawnp(pid, argument_pointers[0], &actions, nullptr,
                                 argument_pointers.data(), environment_pointers.data());
  posix_spawn_file_actions_destroy(&actions);
  return error;
}

// Appends what is readable; false at the end of the stream.
bool Drain(int fd, std::string& to) {
  std::array<char, 65536> buffer;
  const ssize_t n = read(fd, buffer.data(), buffer.size());
  if (n > 0) to.append(buffer.data(), static_cast<size_t>(n));
  return n > 0 || (n < 0 && errno == EINTR);
}

// Reads both streams side by side, so that neither can fill up and stall the program.
absl::Status ReadBoth(absl::string_view program, const Pipe& out, const Pipe& err,
                      const CommandRunner::Limits& limits, CommandRunner::Output& output) {
  const absl::Time deadline = absl::Now() + limits.time;
  std::array<pollfd, 2> streams = {pollfd{out.read_end(), POLLIN, 0},
                                   pollfd{err.read_end(), POLLIN, 0}};
  while (streams[0].fd >= 0 || streams[1].fd >= 0) {
    const int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left_ms <= 0) {
      return absl::DeadlineExceededError(absl::StrCat(program, ": not finished after ",
                                                      absl::FormatDuration(limits.time),
                                                      ", which is the limit"));
    }
    const int timeout_ms = static_cast<int>(std::min<int64_t>(left_ms, 60'000));
    if (poll(streams.data(), streams.size(), timeout_ms) <= 0) continue;  // EINTR or nothing yet
    if (streams[0].revents != 0 && !Drain(streams[0].fd, output.text)) streams[0].fd = -1;
    if (streams[1].revents != 0 && !Drain(streams[1].fd, output.error_text)) streams[1].fd = -1;
    if (output.text.size() > limits.output_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat(program, ": more than ", limits.output_bytes,
                                                       " bytes of output, which is the limit"));
    }
    if (output.error_text.size() > 2 * kErrorTailBytes) {
      output.error_text.erase(0, output.error_text.size() - kErrorTailBytes);
    }
  }
  return absl::OkStatus();
}

int WaitFor(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

class SystemCommandRunner : public CommandRunner {
 public:
  absl::StatusOr<Output> Run(const std::vector<std::string>& argv, const Limits& limits) override {
    FEDGE_CHECK(!argv.empty());
    Pipe out;
    Pipe err;
    if (!out.Open() || !err.Open()) {
      return absl::ResourceExhaustedError(
          absl::StrCat(argv[0], ": cannot make a pipe: ", std::strerror(errno)));
    }
    pid_t pid = 0;
    const int error = Spawn(argv, out, err, &pid);
    const absl::Status not_found =
        absl::NotFoundError(absl::StrCat("program ", argv[0], " not found"));
    if (error == ENOENT || error == EACCES) return not_found;
    if (error != 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("cannot start ", argv[0], ": ", std::strerror(error)));
    }
    out.CloseWrite();
    err.CloseWrite();
    Output output;
    const absl::Status read = ReadBoth(argv[0], out, err, limits, output);
    if (!read.ok()) kill(pid, SIGKILL);
    output.exit_code = WaitFor(pid);
    RETURN_IF_ERROR(read);
    // POSIX lets posix_spawn say it that way as well, and under qemu it does.
    if (output.exit_code == 127 && output.text.empty() && output.error_text.empty()) {
      return not_found;
    }
    return output;
  }
};

}  // namespace

CommandRunner* CommandRunner::System() {
  static SystemCommandRunner* const runner = new SystemCommandRunner;
  return runner;
}

}  // namespace fedge
