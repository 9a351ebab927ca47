// The device's side of a run, one step at a time: check in; with an assignment fetch the global
// adapter, measure it on local held-out data, train it, send the encoded change and the metrics.
//
//   RunOnce: check-in --> retry window ----------------------------------------> kWaiting
//                    \--> finished --------------------------------------------> kFinished
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
#include "client/local_examples.h"
#include "client/participant_state.h"
#include "client/task.h"
#include "client/transfer.h"
#include "common/base/clock.h"
#include "common/codec/error_feedback.h"
#include "common/model/base_model.h"
#include "common/model/transformer.h"
#include "common/training/dataset.h"

namespace fedge {

struct ParticipantOptions {
  std::string node_id;
  uint64_t seed = 0;  // of pauses only; training is seeded by the assignment
  RetryPolicy retry;
  // Held-out tokens scored before each task; 0: none.
  int64_t max_validation_tokens = 4096;
  bool keep_examples = true;  // between tasks: costs memory, saves tokenizing again
  v1::DeviceReport device;    // rate and example count are filled in from the state
};

// What a participant works with. All but the records and the base are borrowed and must outlive it.
struct ParticipantParts {
  std::shared_ptr<const BaseModel> base;
  std::vector<Record> records;
  FederationLink* link = nullptr;
  StateStore* state = nullptr;
  StateStore* adapters = nullptr;  // keeps the global adapter; null: each comes whole
  Clock* clock = nullptr;
  std::function<bool()> stopping;  // may be empty; asked between training steps and in pauses
  std::function<void(const TrainProgress&)> on_step;  // may be empty
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
  // stopping; a failing task is an outcome. After a retryable error in mid-upload the next call
  // brings the finished update first.
  absl::StatusOr<StepOutcome> RunOnce(Transformer& transformer);

  // The final global adapter. FailedPrecondition before RunOnce gave kFinished.
  absl::StatusOr<LoraAdapter> FetchFinalAdapter();

  const std::string& node_id() const { return options_.node_id; }

 private:
  // A finished update on its way to the server.
  struct Outgoing {
    v1::UploadId id;
    std::string bytes;
    std::optional<ErrorFeedback> feedback;
    v1::LoraSpecProto lora;
    v1::TaskMetrics metrics;
  };

  ParticipantState LoadState(std::vector<std::string>* warnings);
  v1::CheckInRequest MakeCheckIn(const ParticipantState& state);
  absl::StatusOr<StepOutcome> CheckInAndAct(Transformer& transformer, ParticipantState state);
  StepOutcome Wait(const v1::RetryWindow& window);
  absl::StatusOr<StepOutcome> RunAssignment(const v1::Assignment& assignment,
                                            Transformer& transformer, ParticipantState state);
  // Fills outgoing_: everything that needs no network.
  absl::Status TrainAndEncode(const Task& task, LoraAdapter adapter, Transformer& transformer,
                              const ParticipantState& state);
  const LocalExamples& ExamplesOf(const Task& task);
  absl::Status Train(const Task& task, const LocalExamples& examples, Transformer& transformer,
                     LoraAdapter* adapter, v1::TaskMetrics* metrics);
  absl::Status Encode(const Task& task, absl::Span<const float> delta,
                      const ParticipantState& state, v1::TaskMetrics metrics);
  absl::StatusOr<StepOutcome> SubmitOutgoing(ParticipantState state);
  StepOutcome Settle(const Outgoing& sent, const v1::UploadReceipt& receipt,
                     ParticipantState state);
  StepOutcome FailTask(const std::string& run_id, uint64_t round, const absl::Status& why);

  const ParticipantOptions options_;
  const ParticipantParts parts_;
  Transfer transfer_;
  Rng pause_rng_;
  std::optional<Outgoing> outgoing_;
  std::optional<v1::RunFinished> finished_;
  GlobalAdapter global_;
  uint64_t reported_download_bytes_ = 0;  // of global_'s, with tasks before
  // Kept between tasks.
  LocalExamples examples_;
  std::string examples_key_;
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_PARTICIPANT_H_
