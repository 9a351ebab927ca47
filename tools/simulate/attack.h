// Nodes of a simulation that lie: what a robust server must stand. For tests and studies of the
// server; the participants themselves are honest, their updates are replaced on the way.
#ifndef FEDGE_TOOLS_SIMULATE_ATTACK_H_
#define FEDGE_TOOLS_SIMULATE_ATTACK_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "client/federation_link.h"
#include "common/adapter/adapter_slice.h"
#include "common/codec/update_codec.h"
#include "tools/simulate/node_data.h"

namespace fedge {

enum class AttackKind {
  kNone,
  kNan,           // a well-formed update of values that are not numbers
  kInf,           // of infinite ones
  kSignFlip,      // the own change times -strength (1)
  kScale,         // the own change times strength (100)
  kNoise,         // Gaussian noise of strength (10) times the own change's norm
  kAlie,          // mean - z standard deviations of the honest updates (Baruch et al. 2019)
  kInnerProduct,  // -strength (1) times the mean of the honest updates (Xie et al. 2019)
  kLabelFlip,     // honest training on data with the answers exchanged
};

// "sign-flip" and so on; InvalidArgument lists the names.
absl::StatusOr<AttackKind> ParseAttackKind(absl::string_view name);
std::string AttackNames();

struct AttackOptions {
  AttackKind kind = AttackKind::kNone;
  double attackers = 0;  // share of the nodes, rounded
  double strength = 0;   // 0: as above
  uint64_t seed = 0;     // of who attacks, and of noise
};

// Thread-safe. Attackers know the honest updates of their round (the strongest assumption of the
// papers): honest nodes must run before them.
class Adversary {
 public:
  Adversary(const AttackOptions& options, absl::Span<const NodeRecords> nodes);

  bool Attacks(const std::string& node) const { return attackers_.count(node) > 0; }
  size_t attackers() const { return attackers_.size(); }
  // kLabelFlip: each attacker's completions become the next of all completions in sorted order.
  void PoisonData(std::vector<NodeRecords>& nodes) const;
  std::unique_ptr<FederationLink> Wrap(const std::string& node,
                                       std::unique_ptr<FederationLink> link);

 private:
  class Link;
  using Change = std::vector<float>;  // flat; 0 where nothing was sent

  void Observe(const std::string& node, uint64_t round, Change change);
  absl::StatusOr<std::string> Forge(const std::string& node, const UpdateHeader& header,
                                    const SliceLayout& layout, const EncodeOptions& codec,
                                    Change own) const;
  // Mean and standard deviation of the honest changes of the round, summed by node id.
  std::pair<Change, Change> HonestMoments() const;
  double AlieQuantile() const;

  const AttackOptions options_;
  const size_t nodes_;
  std::set<std::string> attackers_;
  mutable absl::Mutex mutex_;
  uint64_t round_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, Change> honest_ ABSL_GUARDED_BY(mutex_);  // of round_
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_ATTACK_H_
