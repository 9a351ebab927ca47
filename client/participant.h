// The device's side of a run, one step at a time: check in; with an assignment fetch the global
// adapter, measure it on local held-out data, train it, send the encoded change and the metrics.
//
//   RunOnce: check-in --> retry window ----------------------------------------> kWaiting
//                    \--> finished --------------------------------------------> kFinished
//                     |-> evaluation -> measure a candidate, report --------------> kWaiting
//                     \-> assignment --> fetch > evaluate > train > encode > submit
//                                          \ local failure -> report            -> kFailed
//                                                     receipt -> commit, report -> kAccepted
//                                                             \> discard, report -> kRejected,
//                                                             kLate
//
// No network, no threads, no clock of its own: they are handed in, so that production, simulation
// and tests run the same code. Nothing here logs or reports text of the data.
#ifndef FEDGE_CLIENT_PARTICIPANT_H_
#define FEDGE_CLIENT_PARTICIPANT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/federation_link.h"
#include "client/global_adapter.h"
#include "client/local_training.h"
#include "client/participant_state.h"
#include "client/server_key.h"
#include "client/task.h"
#include "client/transfer.h"
#include "common/base/clock.h"
#include "common/model/base_model.h"
#include "common/model/transformer.h"
#include "common/training/dataset.h"
#include "fedge/v1/client.pb.h"

namespace fedge {

struct ParticipantOptions {
  std::string node_id;
  uint64_t seed = 0;  // of pauses only; training is seeded by the assignment
  RetryPolicy retry;
  // Held-out tokens scored before each task; 0: none.
  int64_t max_validation_tokens = 4096;
  bool keep_examples = true;       // between tasks: costs memory, saves tokenizing again
  int64_t memory_limit_bytes = 0;  // each task is planned to fit it; 0: none
  int threads = 1;                 // of the transformer's pool
  absl::Duration checkpoint_interval = absl::Seconds(60);
  v1::DeviceReport device;  // rate and example count are filled in from the state
};

// What a participant works with. All but the records and the base are borrowed and must outlive it.
struct ParticipantParts {
  std::shared_ptr<const BaseModel> base;
  std::vector<Record> records;
  FederationLink* link = nullptr;
  StateStore* state = nullptr;
  StateStore* adapters = nullptr;     // keeps the global adapter; null: each comes whole
  StateStore* outbox = nullptr;       // keeps a finished update until its receipt; null: it is in
                                      // memory only
  StateStore* checkpoints = nullptr;  // keeps a training under way; null: nothing is kept
  ServerKey* server_key = nullptr;    // checks what the server signed; null: nobody does
  Clock* clock = nullptr;
  // All functions may be empty. `stopping` is asked between training steps and in pauses.
  std::function<bool()> stopping;
  // A finished update stays where it is for now: RunOnce says so, and the next one asks again.
  std::function<bool()> hold_transfers;
  std::function<absl::Duration()> held_time;  // for which training was held back, so far
  std::function<void(v1::DeviceReport&)> describe_device;  // for each check-in
  std::function<void(const v1::Assignment&)> on_task;
  std::function<void(const TrainProgress&)> on_step;
  std::function<void(const LoraAdapter& global, uint64_t version)> on_global;
  std::function<void(const LoraAdapter& global, const LoraAdapter& personal, const LocalLosses&)>
      on_trained;
};

enum class StepKind { kWaiting, kAccepted, kRejected, kLate, kFailed, kFinished };
absl::string_view StepKindName(StepKind kind);

struct StepOutcome {
  StepKind kind = StepKind::kWaiting;
  uint64_t round = 0;       // of the task; 0 without one
  std::string detail;       // one line: why it waits, was rejected or failed
  absl::Duration pause;     // before the next RunOnce
  v1::TaskMetrics metrics;  // of a task
  std::vector<std::string> warnings;
};

// Not thread-safe.
class Participant {
 public:
  Participant(ParticipantOptions options, ParticipantParts parts);

  // One step of the picture above. `transformer` runs on the same base. An error is the link's or
  // the server's refusal of this device (other base model, bad node id), or Cancelled when
  // stopping; a failing task is an outcome. After a retryable error in mid-upload, or when the
  // outbox holds an update of an earlier process, the next call brings that first. An interrupted
  // training goes on; without a server, too.
  absl::StatusOr<StepOutcome> RunOnce(Transformer& transformer);

  // The final global adapter. FailedPrecondition before RunOnce gave kFinished.
  absl::StatusOr<LoraAdapter> FetchFinalAdapter();
  const std::string& finished_run() const { return finished_->adapter().run_id(); }
  uint64_t finished_version() const { return finished_->final_version(); }

  const std::string& node_id() const { return options_.node_id; }

 private:
  ParticipantState LoadState(std::vector<std::string>* warnings);
  v1::CheckInRequest MakeCheckIn(const ParticipantState& state);
  absl::StatusOr<StepOutcome> CheckInAndAct(Transformer& transformer, ParticipantState state);
  StepOutcome Wait(const v1::RetryWindow& window);
  absl::StatusOr<StepOutcome> RunAssignment(const v1::Assignment& assignment,
                                            Transformer& transformer, ParticipantState state);
  // The update of a trained task; the residual it leaves behind once it is accepted.
  absl::StatusOr<v1::OutboxEntry> Encode(const Task& task, const TrainedTask& trained,
                                         const ParticipantState& state);
  // From here on the update survives this process.
  void KeepOutgoing();
  void LoadOutgoing();
  void DropOutgoing();
  absl::StatusOr<StepOutcome> GoOnWithoutServer(const absl::Status& unreachable,
                                                Transformer& transformer, ParticipantState state);
  absl::StatusOr<StepOutcome> SubmitOutgoing(ParticipantState state);
  StepOutcome Settle(const v1::OutboxEntry& sent, const v1::UploadReceipt& receipt,
                     ParticipantState state);
  // Measures a candidate and reports; a kWaiting outcome says what came of it.
  absl::StatusOr<StepOutcome> RunEvaluation(const v1::EvaluationTask& evaluation,
                                            Transformer& transformer);
  StepOutcome FailTask(const std::string& run_id, uint64_t round, const absl::Status& why);

  const ParticipantOptions options_;
  const ParticipantParts parts_;
  Transfer transfer_;
  Rng pause_rng_;
  std::optional<v1::OutboxEntry> outgoing_;  // a finished update on its way to the server
  bool outgoing_kept_ = false;               // it is in the outbox, or the one before is still
  bool outbox_read_ = false;
  LocalTraining training_;
  std::vector<std::string> warnings_;  // of the step under way
  std::optional<v1::RunFinished> finished_;
  GlobalAdapter global_;
  uint64_t reported_download_bytes_ = 0;  // of global_'s, with tasks before
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_PARTICIPANT_H_
