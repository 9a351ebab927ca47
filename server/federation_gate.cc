// FederationCore: what a candidate must pass before it is published.
#include <algorithm>
#include <utility>

#include "common/base/status.h"
#include "server/federation_core.h"
#include "server/task_plan.h"

namespace fedge {
namespace {

constexpr uint64_t kMaxReportedTokens = uint64_t{1} << 40;

LossSum ToLoss(const v1::HeldOutLoss& loss) {
  return {loss.nats(), static_cast<int64_t>(std::min(loss.tokens(), kMaxReportedTokens))};
}

// What a node says: only of slices that it was asked about.
NodeMeasurement ToMeasurement(const v1::EvaluationResult& result,
                              const std::vector<std::string>& slices) {
  NodeMeasurement measured;
  for (const v1::LossComparison& losses : result.losses()) {
    if (losses.slice().empty()) {
      measured.current.total = ToLoss(losses.current());
      measured.candidate.total = ToLoss(losses.candidate());
    } else if (std::binary_search(slices.begin(), slices.end(), losses.slice())) {
      measured.current.slices[losses.slice()] = ToLoss(losses.current());
      measured.candidate.slices[losses.slice()] = ToLoss(losses.candidate());
    }
  }
  return measured;
}

}  // namespace

absl::Status FederationCore::StartGate(Candidate candidate) {
  const VersionPublished& published = candidate.published;
  VersionRecord record;
  record.round = published.round;
  candidate.version.manifest =
      Sign(ManifestOf(published.state, record, candidate.version, published.contributions),
           kCandidateManifestContext);
  std::vector<std::string> nodes;
  {
    absl::MutexLock lock(&mutex_);
    if (plan_.gate.asks_nodes()) nodes = coordinator_->DrawEvaluators(published.round);
    gate_ = std::make_unique<QualityGate>(plan_.gate, options_.evaluator != nullptr, nodes,
                                          plan_.round_deadline, run_clock_.Now());
    gate_round_ = published.round;
  }
  downlink_.ShowCandidate(candidate.version);
  for (ServerEvents* const events : options_.events) {
    events->OnEvaluating(published.round, published.state.version, nodes);
  }
  if (options_.evaluator != nullptr) {
    options_.evaluator->Evaluate({.round = published.round,
                                  .current = downlink_.state(),
                                  .candidate = candidate.version.state});
  }
  candidate_ = std::move(candidate);
  return absl::OkStatus();
}

void FederationCore::NoteHoldout(uint64_t round, const HoldoutMeasurement& measured) {
  {
    absl::MutexLock lock(&mutex_);
    if (gate_ == nullptr || gate_round_ != round) return;
    gate_->NoteHoldout(measured, run_clock_.Now());
  }
  ProcessActions().IgnoreError();  // repeated at the next tick
}

bool FederationCore::AsksForEvaluation(absl::string_view node) {
  absl::MutexLock lock(&mutex_);
  return IsToMeasure(node);
}

bool FederationCore::IsToMeasure(absl::string_view node) {
  return gate_ != nullptr && gate_->Asks(node) && !coordinator_->paused();
}

void FederationCore::RefuseCandidate(absl::string_view reason) {
  if (gate_ != nullptr && !gate_->decided()) gate_->Refuse(reason);
}

std::optional<v1::EvaluationTask> FederationCore::MakeEvaluation(
    const v1::CheckInRequest& request) {
  v1::EvaluationTask task;
  {
    absl::MutexLock lock(&mutex_);
    if (!IsToMeasure(request.node_id())) return std::nullopt;
    task.mutable_assignment()->MergeFrom(assignment_);
    task.mutable_assignment()->set_round(gate_round_);
  }
  std::optional<v1::AdapterSource> candidate = downlink_.CandidateSource();
  if (!candidate || candidate->version() == 0) return std::nullopt;
  const uint64_t current = candidate->version() - 1;
  std::optional<v1::AdapterSource> adapter = downlink_.Offer(current, request.held_adapter());
  if (!adapter) return std::nullopt;
  v1::Assignment& assignment = *task.mutable_assignment();
  assignment.set_adapter_version(current);
  assignment.mutable_training()->set_learning_rate(LocalLearningRate(plan_, current));
  assignment.mutable_codec()->set_density(CodecDensity(plan_, current));
  assignment.set_deadline_ms(
      static_cast<uint64_t>(absl::ToInt64Milliseconds(plan_.round_deadline)));
  *assignment.mutable_adapter() = *std::move(adapter);
  *task.mutable_candidate() = *std::move(candidate);
  task.set_slice_by(static_cast<v1::SliceBy>(plan_.gate.slice_by));
  if (options_.evaluator == nullptr) return task;
  for (const std::string& slice : options_.evaluator->slices()) task.add_slices(slice);
  return task;
}

void FederationCore::NoteEvaluation(const v1::ReportRequest& request) {
  const std::optional<v1::AdapterSource> candidate = downlink_.CandidateSource();
  if (!candidate) return;
  const v1::EvaluationResult& result = request.evaluation();
  const bool is_of_it = result.version() == candidate->version() &&
                        result.values_crc32c() == candidate->values_crc32c();
  NodeMeasurement measured;
  if (is_of_it) {
    measured = ToMeasurement(result, options_.evaluator == nullptr ? std::vector<std::string>()
                                                                   : options_.evaluator->slices());
  }
  absl::MutexLock lock(&mutex_);
  if (gate_ == nullptr || gate_round_ != request.round()) return;
  if (request.has_evaluation() && is_of_it) gate_->NoteNode(request.node_id(), measured);
  if (!request.completed()) gate_->NoteNodeFailed(request.node_id());
}

absl::Status FederationCore::SettleCandidate() {
  v1::GateDecision decision;
  {
    absl::MutexLock lock(&mutex_);
    decision = gate_->decision();
  }
  RETURN_IF_ERROR(decision.passed() ? Publish(*candidate_, &decision)
                                    : Refuse(candidate_->published, decision));
  downlink_.HideCandidate();
  candidate_.reset();
  absl::MutexLock lock(&mutex_);
  gate_.reset();
  return absl::OkStatus();
}

}  // namespace fedge
