// A coordinator over the tiny run, with shorthand for the events of a test.
#ifndef FEDGE_TESTS_SERVER_ROUNDS_H_
#define FEDGE_TESTS_SERVER_ROUNDS_H_

#include <gmock/gmock.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/coordinator.h"
#include "tests/server/tiny_run.h"

namespace fedge::testing {

inline constexpr absl::Duration kStart = absl::Seconds(1000);

class Rounds {
 public:
  explicit Rounds(RunPlan plan = TinyPlan(), uint64_t next_round = 1)
      : coordinator(std::move(plan), ModelState{TinyAdapter(), {}, 0}, next_round) {}

  CheckInDecision CheckIn(absl::string_view node, absl::Duration now = kStart) {
    auto decision = coordinator.CheckIn(node, coordinator.plan().base_model, now);
    FEDGE_CHECK(decision.ok(), decision.status().message());
    return *std::move(decision);
  }
  void CheckInAll(int nodes, absl::Duration now = kStart) {
    for (int i = 0; i < nodes; ++i) CheckIn(NodeName(static_cast<uint64_t>(i)), now);
  }
  UpdateVerdict Submit(absl::string_view node, uint64_t round, const std::string& bytes) {
    const Digest digest = Sha256Of(bytes);
    if (auto known = coordinator.KnownVerdict(node, round, digest)) return *known;
    const uint64_t base_version = *coordinator.BaseVersion(round);
    return coordinator.SubmitUpdate(
        node, round,
        {.digest = digest,
         .wire_bytes = bytes.size(),
         .admitted = AdmitUpdate(coordinator.plan(), round, base_version, bytes)});
  }
  UpdateVerdict Submit(absl::string_view node, UpdateSpec spec) {
    return Submit(node, spec.round, MakeUpdate(coordinator.plan(), spec));
  }
  // The last action of type T; earlier ones of any type are dropped.
  template <typename T>
  std::optional<T> Take() {
    std::optional<T> found;
    for (CoordinatorAction& action : coordinator.TakeActions()) {
      if (auto* const wanted = std::get_if<T>(&action)) found = std::move(*wanted);
    }
    return found;
  }

  Coordinator coordinator;
};

// In the order of the struct, but for `folded`.
inline void ExpectCounts(const RoundCounts& counts, std::vector<int64_t> expected) {
  EXPECT_THAT((std::vector<int64_t>{counts.assigned, counts.pending, counts.accepted,
                                    counts.rejected, counts.dropped, counts.late}),
              ::testing::ElementsAreArray(expected));
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_SERVER_ROUNDS_H_
