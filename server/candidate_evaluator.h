// Who measures candidates on held-out data of the server.
#ifndef FEDGE_SERVER_CANDIDATE_EVALUATOR_H_
#define FEDGE_SERVER_CANDIDATE_EVALUATOR_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/codec/adapter_state.h"

namespace fedge {

struct CandidateTask {
  uint64_t round = 0;                                      // that made the candidate
  std::shared_ptr<const AdapterState> current, candidate;  // as devices (would) hold them
};

// Thread-safe.
class CandidateEvaluator {
 public:
  virtual ~CandidateEvaluator() = default;
  // Returns at once and does not call the core; FederationCore::NoteHoldout follows from elsewhere,
  // unless a later task takes this one's place. The same task gives the same measurement.
  virtual void Evaluate(CandidateTask task) = 0;
  // The named slices of the data, sorted.
  virtual std::vector<std::string> slices() const = 0;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_CANDIDATE_EVALUATOR_H_
