// What the daemon is doing, for whoever asks (`fedge-client status`).
#ifndef FEDGE_CLIENT_STATUS_BOARD_H_
#define FEDGE_CLIENT_STATUS_BOARD_H_

#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "fedge/v1/client.pb.h"

namespace fedge {

// Thread-safe.
class StatusBoard {
 public:
  explicit StatusBoard(Clock* clock) : clock_(clock) {}

  void Update(absl::FunctionRef<void(v1::ClientStatus&)> change);
  void SetState(absl::string_view state, absl::string_view detail);
  void NoteAnswer();  // the server answered just now
  void NoteNextCheckIn(absl::Duration pause);

  // With the times as of now.
  v1::ClientStatus Get();

 private:
  Clock* const clock_;
  absl::Mutex mutex_;
  v1::ClientStatus status_ ABSL_GUARDED_BY(mutex_);
  absl::Duration answered_at_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
  absl::Duration check_in_at_ ABSL_GUARDED_BY(mutex_);
};

// One JSON object, names as in the schema; or some lines for a person.
std::string StatusAsJson(const v1::ClientStatus& status);
std::string StatusAsText(const v1::ClientStatus& status);

}  // namespace fedge

#endif  // FEDGE_CLIENT_STATUS_BOARD_H_
