// What an open round has taken in: updates within the norm bound, their exact sums and, where the
// next version needs them one by one, the updates.
#ifndef FEDGE_SERVER_ROUND_UPDATES_H_
#define FEDGE_SERVER_ROUND_UPDATES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/digest.h"
#include "server/aggregation.h"
#include "server/aggregator.h"
#include "server/run_plan.h"
#include "server/update_admission.h"
#include "server/update_source.h"

namespace fedge {

using BlobReader = std::function<absl::StatusOr<std::string>(const Digest&)>;

// One accepted update in a version.
struct Contribution {
  std::string node_id;
  uint64_t round = 0;  // whose task it was: the version's own, or an earlier one
  Digest digest;
  uint64_t weight = 0;
  uint64_t wire_bytes = 0;
};

struct ClosedRound {
  NextVersion next;
  std::vector<Contribution> contributions;  // sorted by node, then round
};

// The result has the same bits for any order of the updates. Not thread-safe.
class RoundUpdates {
 public:
  // Of a round that trains `before`. Both must outlive this object and stay as they are. `read`:
  // gets the bytes of an accepted update by their digest when the round is closed; null: updates
  // that are needed again are kept in memory.
  RoundUpdates(const RunPlan& plan, const ModelState& before, BlobReader read = nullptr);
  RoundUpdates(const RoundUpdates&) = delete;
  RoundUpdates& operator=(const RoundUpdates&) = delete;

  // `update.admitted` must be OK and of the round's base version or an older one: then only a part
  // of its change counts (StalenessFactor), rounded to the sums' unit as any other value. On error
  // (the norm bound's, the sums') nothing is added. Returns the update's weight.
  absl::StatusOr<uint64_t> Add(absl::string_view node, ReceivedUpdate update);
  // How many nodes the updates are of: one that was late, or in an attempt before, has two.
  int64_t num_nodes() const { return static_cast<int64_t>(nodes_.size()); }
  // The next version; at least one update was added. OutOfRange: CloseRound's. FailedPrecondition:
  // no update can be combined. DataLoss: one cannot be read again.
  absl::StatusOr<ClosedRound> Close();

 private:
  size_t slot() const;
  // The norm bound, and what its age leaves of it.
  absl::Status Bound(AdmittedUpdate& update, double* rms = nullptr) const;
  // Whether the norm bound of this round is known, or there is none.
  bool IsBounded() const;
  absl::StatusOr<NextVersion> CloseSums(std::vector<Contribution>& contributions);

  const RunPlan& plan_;
  const ModelState& before_;
  UpdateAggregator sums_;
  std::unique_ptr<HeldUpdates> held_;  // with a robust rule or no bound yet; the sums are then only
                                       // a check
  std::vector<Contribution> contributions_;
  absl::flat_hash_set<std::string> nodes_;
  std::vector<double> norms_;  // rms()
};

}  // namespace fedge

#endif  // FEDGE_SERVER_ROUND_UPDATES_H_
