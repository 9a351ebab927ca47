// Whether a round's result may be published: a state machine over measurements, without clock,
// threads or evaluation of its own.
//
//   HOLDOUT --not worse--> NODES --enough reports, not worse; or an operator approves--> PASSED
//       \---- worse ---------\----- worse, or too few reports at the deadline ---------> REFUSED
//
// HOLDOUT: the server's own data, all of it and each named slice, against the version before and
// against the bare base model: the latter bounds what many small steps back add up to. NODES: what
// sampled nodes and canaries measured on data of their own; each counts the same whatever it says
// its size is, and by at most kMaxNodeChange, so that a few that lie decide little. A stage without
// data is skipped. What is not a number is worse than anything.
#ifndef FEDGE_SERVER_QUALITY_GATE_H_
#define FEDGE_SERVER_QUALITY_GATE_H_

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/model/transformer.h"
#include "fedge/v1/registry.pb.h"
#include "server/gate_plan.h"

namespace fedge {

// Loss of one adapter on held-out data: of all of it, and of its named parts.
struct Measurement {
  LossSum total;
  std::map<std::string, LossSum> slices;
};
struct HoldoutMeasurement {
  Measurement base, current, candidate;
};
struct NodeMeasurement {
  Measurement current, candidate;
};

inline constexpr double kMaxNodeChange = 1;  // nats a token that one node's report counts
inline constexpr size_t kMinSliceNodes = 3;  // a slice of the nodes' data is of so many at least
inline constexpr size_t kMaxSlices = 64;

// Not thread-safe. Times are Clock::Monotonic values.
class QualityGate {
 public:
  enum class Stage { kHoldout, kNodes, kPassed, kRefused };

  // `nodes`: who is asked; their stage ends after `limit`, once it began.
  QualityGate(const GatePlan& plan, bool has_holdout, std::vector<std::string> nodes,
              absl::Duration limit, absl::Duration now);

  void NoteHoldout(const HoldoutMeasurement& measured, absl::Duration now);
  // Whether the node is asked for a measurement: in its stage, and not answered yet.
  bool Asks(absl::string_view node) const;
  // Ignored unless Asks, or if it measured no token.
  void NoteNode(absl::string_view node, const NodeMeasurement& measured);
  // The node cannot: it is not waited for.
  void NoteNodeFailed(absl::string_view node);
  void Tick(absl::Duration now);
  // An operator does not wait for the nodes. False unless in their stage.
  bool Approve(absl::string_view who);
  // It shall not be published, whatever was measured. Not once it is decided.
  void Refuse(absl::string_view reason);

  Stage stage() const { return stage_; }
  bool decided() const { return stage_ == Stage::kPassed || stage_ == Stage::kRefused; }
  const v1::GateDecision& decision() const { return decision_; }  // whole once decided

 private:
  struct Answer {
    double change = 0;
    NodeMeasurement measured;
  };

  void Pass(absl::string_view reason);
  void StartNodes(absl::Duration now);
  void DecideByNodes();
  bool SlicesOfNodesHold();

  const GatePlan plan_;
  const absl::Duration limit_;
  Stage stage_ = Stage::kHoldout;
  std::set<std::string, std::less<>> waiting_;
  size_t asked_ = 0;
  std::map<std::string, Answer, std::less<>> answers_;
  absl::Duration deadline_;
  v1::GateDecision decision_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_QUALITY_GATE_H_
