// Participant: measuring a candidate for the server's quality gate.
#include <utility>

#include "absl/strings/str_format.h"
#include "client/participant.h"
#include "common/base/status.h"
#include "common/training/evaluation.h"

namespace fedge {
namespace {

constexpr size_t kMaxTaskSlices = 64;
constexpr absl::Duration kPauseAfterEvaluation = absl::Milliseconds(100);

// Held-out examples: of each slice that was asked for, and of all together.
struct EvaluationData {
  std::vector<Example> all;
  std::vector<std::pair<std::string, std::vector<Example>>> slices;
};

EvaluationData MakeEvaluationData(const std::vector<Record>& records, const Task& task,
                                  const v1::EvaluationTask& evaluation, int64_t max_tokens,
                                  const Tokenizer& tokenizer) {
  EvaluationData data;
  for (const std::string& slice : evaluation.slices()) {
    data.slices.push_back({slice, {}});
    if (data.slices.size() == kMaxTaskSlices) break;
  }
  const auto by = static_cast<SliceBy>(evaluation.slice_by());
  for (const Record& record : records) {
    if (!IsValidation(record, task.split_seed, task.validation_fraction)) continue;
    const std::string name = SliceName(record, by);
    for (Example& example : MakeExamples(record, tokenizer, task.training.length)) {
      for (auto& [slice, examples] : data.slices) {
        if (slice == name) examples.push_back(example);
      }
      data.all.push_back(std::move(example));
    }
  }
  const Rng sampling = Rng::Stream(task.split_seed, "evaluation-sample");
  data.all = BoundedSample(data.all, max_tokens, sampling);
  for (auto& [slice, examples] : data.slices) {
    examples =
        BoundedSample(examples, max_tokens / static_cast<int64_t>(data.slices.size()), sampling);
  }
  return data;
}

v1::HeldOutLoss Measure(Transformer& transformer, const AdapterState& state,
                        const std::vector<Example>& examples) {
  const LossSum sum = EvaluateLoss(transformer, &state.adapter(), examples);
  v1::HeldOutLoss loss;
  loss.set_nats(sum.nats);
  loss.set_tokens(static_cast<uint64_t>(sum.num_tokens));
  return loss;
}

double Mean(const v1::HeldOutLoss& loss) {
  return loss.nats() / static_cast<double>(loss.tokens());
}

}  // namespace

absl::StatusOr<StepOutcome> Participant::RunEvaluation(const v1::EvaluationTask& evaluation,
                                                       Transformer& transformer) {
  const v1::Assignment& assignment = evaluation.assignment();
  const auto fail = [&](const absl::Status& why) -> absl::StatusOr<StepOutcome> {
    const bool is_the_links = IsRetryable(why) || absl::IsCancelled(why);
    if (is_the_links || absl::IsUnauthenticated(why)) return why;
    if (!absl::IsNotFound(why) && !absl::IsDataLoss(why)) {
      return FailTask(assignment.run_id(), assignment.round(), why);
    }
    // The run moved on between two calls, or what is held is not what it should be.
    if (absl::IsDataLoss(why)) global_.Forget();
    StepOutcome outcome;
    outcome.detail = std::string(why.message());
    outcome.pause = kPauseAfterEvaluation;
    return outcome;
  };
  const absl::StatusOr<Task> task = ParseTask(assignment, options_.node_id, *parts_.base);
  if (!task.ok()) return fail(task.status());
  const EvaluationData data = MakeEvaluationData(
      parts_.records, *task, evaluation, options_.max_validation_tokens, parts_.base->tokenizer());
  if (data.all.empty()) {
    return fail(absl::FailedPreconditionError("this node has no held-out data to measure with"));
  }
  const absl::StatusOr<AdapterState> current = global_.FetchState(task->lora, task->adapter);
  if (!current.ok()) return fail(current.status());
  const absl::StatusOr<AdapterState> candidate =
      global_.FetchCandidate(*current, evaluation.candidate());
  if (!candidate.ok()) return fail(candidate.status());
  v1::ReportRequest report;
  report.set_run_id(assignment.run_id());
  report.set_round(assignment.round());
  report.set_node_id(options_.node_id);
  report.set_completed(true);
  v1::EvaluationResult& result = *report.mutable_evaluation();
  result.set_version(candidate->version());
  result.set_values_crc32c(candidate->crc());
  const auto add = [&](const std::string& slice, const std::vector<Example>& examples) {
    v1::LossComparison& losses = *result.add_losses();
    losses.set_slice(slice);
    *losses.mutable_current() = Measure(transformer, *current, examples);
    *losses.mutable_candidate() = Measure(transformer, *candidate, examples);
  };
  add("", data.all);
  for (const auto& [slice, examples] : data.slices) {
    if (parts_.stopping && parts_.stopping()) return absl::CancelledError("stopping");
    if (!examples.empty()) add(slice, examples);
  }
  RETURN_IF_ERROR(transfer_.Report(report));
  StepOutcome outcome;
  outcome.round = assignment.round();
  outcome.detail = absl::StrFormat(
      "round %d: measured version %d: %.4f nats a token, before %.4f", assignment.round(),
      candidate->version(), Mean(result.losses(0).candidate()), Mean(result.losses(0).current()));
  outcome.pause = kPauseAfterEvaluation;
  return outcome;
}

}  // namespace fedge
