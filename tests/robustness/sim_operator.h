// An operator who pauses and resumes the simulated run, rolls it back and, in some seeds, stops it;
// and what must then be true, also of servers started later.
#ifndef FEDGE_TESTS_ROBUSTNESS_SIM_OPERATOR_H_
#define FEDGE_TESTS_ROBUSTNESS_SIM_OPERATOR_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/federation_core.h"
#include "tests/robustness/sim_adversary.h"
#include "tests/robustness/sim_store.h"

namespace fedge::robustness {

class SimOperator {
 public:
  explicit SimOperator(uint64_t seed)
      : rng_(Rng::Stream(seed, "operator")), stops_(rng_.Below(8) == 0) {}

  absl::Duration Pause() { return absl::Seconds(5 + static_cast<int64_t>(rng_.Below(60))); }

  // One command. Once nothing goes wrong any more, only to resume: the run must come to its end.
  void Act(FederationCore& core, const Adversary& adversary, const SimDisk& disk) {
    const bool pause = adversary.active() && rng_.Below(3) == 0;
    if (adversary.active() && stops_ && rng_.Below(6) == 0) {
      const bool finished = core.state() == RunState::kFinished;
      if (core.Stop().ok() && !adversary.dead() && !finished) {
        versions_when_stopped_ = disk.versions.size();
      }
      return;
    }
    if (adversary.active() && rng_.Below(6) == 0) return RollBack(core, adversary);
    if (!pause) paused_ = false;  // from the attempt on nothing is known
    const absl::Status status = core.SetPaused(pause);
    if (status.ok() && !adversary.dead()) paused_ = pause;
  }

  // A violation by an answer to a check-in, or "".
  std::string Check(const v1::CheckInResponse& response) const {
    if (paused_ && (response.has_assignment() || response.has_evaluation())) {
      return "a paused run gave a task (I11)";
    }
    if (versions_when_stopped_ && !response.has_finished()) {
      return "a stopped run did not say that it is over (I11)";
    }
    return "";
  }
  std::string CheckEnd(const SimDisk& disk) const {
    for (const auto& [number, origin] : rollbacks_) {
      const auto version = disk.versions.find(number);
      if (version == disk.versions.end() || version->second.origin != origin) {
        return absl::StrCat("version ", number, " is not version ", origin, " again (I13)");
      }
    }
    if (!versions_when_stopped_ || *versions_when_stopped_ == disk.versions.size()) return "";
    return absl::StrCat("a run stopped with ", *versions_when_stopped_, " versions ended with ",
                        disk.versions.size(), " (I11)");
  }

  size_t rollbacks() const { return rollbacks_.size(); }

 private:
  void RollBack(FederationCore& core, const Adversary& adversary) {
    // A stopped run would have one version more.
    if (stops_ || core.version() == 0) return;
    const uint64_t origin = rng_.Below(core.version());
    const absl::StatusOr<uint64_t> number = core.Rollback(origin, "simulated");
    if (number.ok() && !adversary.dead()) rollbacks_[*number] = origin;
  }

  Rng rng_;
  const bool stops_;
  bool paused_ = false;                     // acknowledged
  std::map<uint64_t, uint64_t> rollbacks_;  // so, too: version to origin
  std::optional<uint64_t> versions_when_stopped_;
};

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_SIM_OPERATOR_H_
