// What a node keeps between rounds: the error-feedback residual, what it measured of itself, the
// shape of the adapter it last trained. And where: files on a device, a bounded amount of memory
// with a spill folder for the many nodes of a simulation.
#ifndef FEDGE_CLIENT_PARTICIPANT_STATE_H_
#define FEDGE_CLIENT_PARTICIPANT_STATE_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/base/env.h"
#include "fedge/v1/federation.pb.h"

namespace fedge {

struct ParticipantState {
  std::string run_id;            // the residual belongs to this run
  double tokens_per_second = 0;  // of the last task; 0: unknown
  uint64_t num_examples = 0;     // local training examples; 0: unknown
  v1::LoraSpecProto lora;        // of the last task
  v1::TaskMetrics last_metrics;  // of the last task
  std::string error_feedback;    // ErrorFeedback::Serialize; empty: nothing kept

  // Version, lengths and CRC-32C around the fields.
  std::string Serialize() const;
  // DataLoss when the bytes are damaged or of another version.
  static absl::StatusOr<ParticipantState> Parse(absl::string_view bytes);
};

// Bytes by node id. Thread-safe.
class StateStore {
 public:
  virtual ~StateStore() = default;
  // NotFound when nothing was written for this node.
  virtual absl::StatusOr<std::string> Read(absl::string_view node_id) = 0;
  virtual absl::Status Write(absl::string_view node_id, std::string bytes) = 0;
  // Then Read finds nothing, or nothing but "". Fine if there was nothing.
  virtual absl::Status Remove(absl::string_view node_id) { return Write(node_id, ""); }
};

// One file a node, replaced atomically: a device's store.
class DirectoryStateStore : public StateStore {
 public:
  // Files appear in `dir`, which is made at the first write, with names that end in `suffix`. `env`
  // must outlive this object.
  DirectoryStateStore(std::string dir, Env* env, std::string suffix = ".state");
  absl::StatusOr<std::string> Read(absl::string_view node_id) override;
  absl::Status Write(absl::string_view node_id, std::string bytes) override;
  absl::Status Remove(absl::string_view node_id) override;
  std::string Path(absl::string_view node_id) const;

 private:
  const std::string dir_;
  Env* const env_;
  const std::string suffix_;
};

// In memory up to a budget, then in `spill` (kept alive by the caller). Each node's latest bytes
// are in one of the two.
class BudgetedStateStore : public StateStore {
 public:
  BudgetedStateStore(uint64_t max_memory_bytes, StateStore* spill);
  absl::StatusOr<std::string> Read(absl::string_view node_id) override;
  absl::Status Write(absl::string_view node_id, std::string bytes) override;
  uint64_t memory_bytes() const;

 private:
  const uint64_t max_memory_bytes_;
  StateStore* const spill_;
  mutable absl::Mutex mutex_;
  std::map<std::string, std::string, std::less<>> held_ ABSL_GUARDED_BY(mutex_);
  uint64_t memory_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_PARTICIPANT_STATE_H_
