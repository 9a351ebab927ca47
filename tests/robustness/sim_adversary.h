// Who decides, from a seed, what goes wrong in a simulated run and when.
#ifndef FEDGE_TESTS_ROBUSTNESS_SIM_ADVERSARY_H_
#define FEDGE_TESTS_ROBUSTNESS_SIM_ADVERSARY_H_

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/base/rng.h"

namespace fedge::robustness {

// Rates differ from seed to seed: some runs have a bad network, some a bad disk, some both.
class Adversary {
 public:
  explicit Adversary(uint64_t seed)
      : rng_(Rng::Stream(seed, "adversary")),
        crash_(rng_.Uniform() * 0.06),
        disk_error_(rng_.Uniform() * 0.02),
        full_(rng_.Uniform() * 0.05),
        drop_(rng_.Uniform() * 0.3),
        duplicate_(rng_.Uniform() * 0.3),
        slow_(rng_.Uniform() * 0.3) {}

  Rng& rng() { return rng_; }
  bool Chance(double probability) { return active_ && rng_.Uniform() < probability; }
  bool active() const { return active_; }
  // From now on nothing goes wrong.
  void Stop() { active_ = false; }

  // A durable write: it may not happen, or happen and be reported as failed, or the process dies
  // before or after it. A dead process writes nothing more.
  absl::Status Write(absl::FunctionRef<void()> operation) {
    if (dead_) return absl::InternalError("dead");
    ++writes_;
    if (Chance(crash_)) {
      if (rng_.Below(2) == 0) operation();
      dead_ = true;
      return absl::InternalError("crash");
    }
    if (Chance(disk_error_)) {
      if (rng_.Below(2) == 0) operation();
      return absl::InternalError("disk error");
    }
    if (Chance(full_)) {
      if (rng_.Below(2) == 0) operation();
      return absl::ResourceExhaustedError("disk full");
    }
    operation();
    return absl::OkStatus();
  }
  bool dead() const { return dead_; }
  void Revive() { dead_ = false; }

  bool Drops() { return Chance(drop_); }
  bool Duplicates() { return Chance(duplicate_); }
  absl::Duration Delay() {
    if (Chance(slow_)) return absl::Milliseconds(static_cast<int64_t>(rng_.Below(40'000)));
    return absl::Milliseconds(1 + static_cast<int64_t>(rng_.Below(200)));
  }
  uint64_t writes() const { return writes_; }

 private:
  Rng rng_;
  bool active_ = true;
  bool dead_ = false;
  uint64_t writes_ = 0;
  double crash_, disk_error_, full_, drop_, duplicate_, slow_;
};

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_SIM_ADVERSARY_H_
