// The daemon's loop over a participant: step after step, for days, with a pause after each that
// fits how it went.
#ifndef FEDGE_CLIENT_STEP_LOOP_H_
#define FEDGE_CLIENT_STEP_LOOP_H_

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/participant.h"
#include "common/base/clock.h"

namespace fedge {

struct StepLoopOptions {
  // How long a server that does not answer is waited for; infinite: for ever.
  absl::Duration patience = absl::InfiniteDuration();
  bool once = false;  // end after one step, whatever it gave
  uint64_t seed = 0;  // of jitter
  // All may be empty.
  std::function<bool()> stopping;
  std::function<bool()> await_permission;  // waits until work is allowed; false: stopping
  // After each step, with the pause that follows.
  std::function<void(const absl::StatusOr<StepOutcome>&, absl::Duration pause)> on_outcome;
};

// Returns when the run is over (`*finished`), when stopping, or with what cannot be helped: a
// server that stays away beyond the patience, or one that refuses this device before it ever
// answered. A refusal later on, as everything that fails time and again, is tried again ever more
// seldom: 5 s, doubling to 2 minutes, for an unreachable server; 10 s to an hour for tasks that
// fail; each give or take a half.
absl::Status RunSteps(const StepLoopOptions& options, Participant& participant,
                      Transformer& transformer, Clock& clock, bool* finished);

}  // namespace fedge

#endif  // FEDGE_CLIENT_STEP_LOOP_H_
