#include "client/state_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/env.h"
#include "common/base/status.h"

namespace fedge {
namespace {

std::string LockPath(absl::string_view state_dir) { return JoinPath(state_dir, "lock"); }

int64_t PidIn(int fd) {
  char text[32] = {};
  return pread(fd, text, sizeof(text) - 1, 0) > 0 ? std::atoll(text) : 0;
}

}  // namespace

absl::StatusOr<StateLock> StateLock::Take(absl::string_view state_dir) {
  const std::string path = LockPath(state_dir);
  StateLock lock(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (lock.fd_ < 0) {
    const std::string message = absl::StrCat(path, ": cannot open: ", std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(message) : absl::PermissionDeniedError(message);
  }
  if (flock(lock.fd_, LOCK_EX | LOCK_NB) != 0) {
    return absl::AlreadyExistsError(
        absl::StrCat(state_dir, ": another fedge-client (process ", PidIn(lock.fd_),
                     ") runs on this state folder; stop it, or give this one another --state-dir"));
  }
  const std::string pid = absl::StrCat(getpid(), "\n");
  // Only for messages: a lock without a number in it is as good.
  if (ftruncate(lock.fd_, 0) != 0 ||
      pwrite(lock.fd_, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    errno = 0;
  }
  return lock;
}

int64_t StateLock::Holder(absl::string_view state_dir) {
  const int fd = open(LockPath(state_dir).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  const bool free = flock(fd, LOCK_SH | LOCK_NB) == 0;
  const int64_t pid = free ? 0 : PidIn(fd);
  close(fd);
  return pid;
}

StateLock::~StateLock() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace fedge
