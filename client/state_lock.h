// One daemon a state folder: a lock that ends with its process, however that ends.
#ifndef FEDGE_CLIENT_STATE_LOCK_H_
#define FEDGE_CLIENT_STATE_LOCK_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fedge {

// Movable.
class StateLock {
 public:
  // AlreadyExists names the process that has the folder. PermissionDenied, NotFound: the folder.
  static absl::StatusOr<StateLock> Take(absl::string_view state_dir);
  // The process that has it; 0: none.
  static int64_t Holder(absl::string_view state_dir);

  StateLock(StateLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  StateLock& operator=(StateLock&&) = delete;
  ~StateLock();

 private:
  explicit StateLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_STATE_LOCK_H_
