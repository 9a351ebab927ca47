#include "server/quality_gate.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status.h"

namespace fedge {
namespace {

bool IsMeasured(const LossSum& loss) { return loss.num_tokens > 0; }

v1::HeldOutLoss ToProto(const LossSum& loss) {
  v1::HeldOutLoss proto;
  proto.set_nats(loss.nats);
  proto.set_tokens(static_cast<uint64_t>(loss.num_tokens));
  return proto;
}

LossSum SliceOf(const Measurement& measured, const std::string& slice) {
  const auto found = measured.slices.find(slice);
  return found == measured.slices.end() ? LossSum() : found->second;
}

v1::LossComparison Compare(const HoldoutMeasurement& measured, const std::string& slice) {
  const auto part = [&](const Measurement& of) {
    return ToProto(slice.empty() ? of.total : SliceOf(of, slice));
  };
  v1::LossComparison losses;
  losses.set_slice(slice);
  *losses.mutable_base() = part(measured.base);
  *losses.mutable_current() = part(measured.current);
  *losses.mutable_candidate() = part(measured.candidate);
  return losses;
}

double Mean(const v1::HeldOutLoss& loss) {
  return loss.nats() / static_cast<double>(loss.tokens());
}

// Why `candidate` is too much worse than `reference`; empty: it is not. A reference that is not a
// number says nothing.
std::string Regression(absl::string_view what, const v1::HeldOutLoss& candidate,
                       const v1::HeldOutLoss& reference, absl::string_view whose, double allowed) {
  if (reference.tokens() == 0 || !std::isfinite(Mean(reference))) return "";
  const double change = Mean(candidate) - Mean(reference);
  if (change <= allowed) return "";
  return absl::StrFormat("%s %.4f is worse than %s %.4f by %.4f nats a token, allowed are %g", what,
                         Mean(candidate), whose, Mean(reference), change, allowed);
}

std::string Verdict(const v1::LossComparison& losses, double allowed) {
  const std::string what =
      losses.slice().empty() ? "holdout loss" : absl::StrCat("slice '", losses.slice(), "': loss");
  const v1::HeldOutLoss& candidate = losses.candidate();
  if (candidate.tokens() == 0) return "";
  if (!std::isfinite(Mean(candidate))) return absl::StrCat(what, " is not a number");
  std::string reason =
      Regression(what, candidate, losses.current(), "the current version's", allowed);
  if (!reason.empty()) return reason;
  return Regression(what, candidate, losses.base(), "the base model's", allowed);
}

// What one node's report counts.
double Change(const LossSum& current, const LossSum& candidate) {
  const double change = candidate.mean() - current.mean();
  if (!std::isfinite(change)) return kMaxNodeChange;
  return std::clamp(change, -kMaxNodeChange, kMaxNodeChange);
}

}  // namespace

QualityGate::QualityGate(const GatePlan& plan, bool has_holdout, std::vector<std::string> nodes,
                         absl::Duration limit, absl::Duration now)
    : plan_(plan), limit_(limit) {
  waiting_.insert(nodes.begin(), nodes.end());
  asked_ = waiting_.size();
  if (!has_holdout) StartNodes(now);
}

void QualityGate::NoteHoldout(const HoldoutMeasurement& measured, absl::Duration now) {
  if (stage_ != Stage::kHoldout) return;
  *decision_.mutable_holdout() = Compare(measured, "");
  std::string reason = Verdict(decision_.holdout(), plan_.max_regression);
  for (const auto& [slice, loss] : measured.candidate.slices) {
    *decision_.add_slices() = Compare(measured, slice);
    if (reason.empty()) {
      reason = Verdict(*decision_.slices().rbegin(), plan_.max_slice_regression);
    }
  }
  if (!reason.empty()) return Refuse(reason);
  StartNodes(now);
}

void QualityGate::StartNodes(absl::Duration now) {
  if (!plan_.asks_nodes()) return Pass("not worse on the holdout");
  stage_ = Stage::kNodes;
  deadline_ = now + limit_;
  decision_.mutable_nodes()->set_asked(static_cast<uint32_t>(asked_));
  if (waiting_.empty()) DecideByNodes();
}

bool QualityGate::Asks(absl::string_view node) const {
  return stage_ == Stage::kNodes && waiting_.find(node) != waiting_.end();
}

void QualityGate::NoteNode(absl::string_view node, const NodeMeasurement& measured) {
  const LossSum& current = measured.current.total;
  const LossSum& candidate = measured.candidate.total;
  if (!Asks(node) || !IsMeasured(current) || current.num_tokens != candidate.num_tokens ||
      !std::isfinite(current.nats)) {
    return;
  }
  answers_[std::string(node)] = {Change(current, candidate), measured};
  waiting_.erase(waiting_.find(node));
  if (waiting_.empty()) DecideByNodes();
}

void QualityGate::NoteNodeFailed(absl::string_view node) {
  if (!Asks(node)) return;
  waiting_.erase(waiting_.find(node));
  if (waiting_.empty()) DecideByNodes();
}

void QualityGate::Tick(absl::Duration now) {
  if (stage_ == Stage::kNodes && now >= deadline_) DecideByNodes();
}

bool QualityGate::Approve(absl::string_view who) {
  if (stage_ != Stage::kNodes) return false;
  decision_.mutable_nodes()->set_reported(static_cast<uint32_t>(answers_.size()));
  decision_.set_approved_by(std::string(who));
  Pass(absl::StrCat("approved after ", answers_.size(), " of ", asked_, " nodes reported"));
  return true;
}

void QualityGate::Pass(absl::string_view reason) {
  stage_ = Stage::kPassed;
  decision_.set_passed(true);
  decision_.set_reason(std::string(reason));
}

void QualityGate::Refuse(absl::string_view reason) {
  FEDGE_CHECK(!decided());
  stage_ = Stage::kRefused;
  decision_.set_reason(std::string(reason));
}

void QualityGate::DecideByNodes() {
  v1::NodeEvaluation& nodes = *decision_.mutable_nodes();
  nodes.set_reported(static_cast<uint32_t>(answers_.size()));
  const size_t needed = std::max<size_t>(1, (asked_ + 1) / 2);
  if (answers_.size() < needed) {
    return Refuse(absl::StrCat(answers_.size(), " of ", asked_,
                               " nodes that were asked to measure it reported, ", needed,
                               " are needed"));
  }
  std::vector<double> changes;
  double sum = 0;
  for (const auto& [node, answer] : answers_) {
    changes.push_back(answer.change);
    sum += answer.change;
  }
  std::sort(changes.begin(), changes.end());
  nodes.set_mean_change(sum / static_cast<double>(changes.size()));
  nodes.set_worst_decile_change(changes[changes.size() - 1 - changes.size() / 10]);
  if (nodes.mean_change() > plan_.max_regression) {
    return Refuse(absl::StrFormat(
        "on the nodes' own data the loss is worse by %.4f nats a token in the mean of %d nodes, "
        "allowed are %g",
        nodes.mean_change(), changes.size(), plan_.max_regression));
  }
  if (nodes.worst_decile_change() > plan_.max_slice_regression) {
    return Refuse(absl::StrFormat(
        "on the nodes' own data the loss is worse by %.4f nats a token for a tenth of %d nodes, "
        "allowed are %g",
        nodes.worst_decile_change(), changes.size(), plan_.max_slice_regression));
  }
  if (SlicesOfNodesHold()) {
    Pass(absl::StrCat("not worse on the data of ", changes.size(), " nodes"));
  }
}

bool QualityGate::SlicesOfNodesHold() {
  struct Sum {
    double change = 0;
    size_t nodes = 0;
    LossSum current, candidate;
  };
  std::map<std::string, Sum> slices;
  for (const auto& [node, answer] : answers_) {
    for (const auto& [slice, candidate] : answer.measured.candidate.slices) {
      const LossSum current = SliceOf(answer.measured.current, slice);
      if (!IsMeasured(candidate) || candidate.num_tokens != current.num_tokens ||
          !std::isfinite(current.nats)) {
        continue;
      }
      Sum& sum = slices[slice];
      sum.change += Change(current, candidate);
      ++sum.nodes;
      sum.current += current;
      sum.candidate += candidate;
    }
  }
  for (const auto& [slice, sum] : slices) {
    v1::LossComparison& losses = *decision_.mutable_nodes()->add_slices();
    losses.set_slice(slice);
    *losses.mutable_current() = ToProto(sum.current);
    *losses.mutable_candidate() = ToProto(sum.candidate);
  }
  for (const auto& [slice, sum] : slices) {
    const double change = sum.change / static_cast<double>(sum.nodes);
    if (sum.nodes < kMinSliceNodes || change <= plan_.max_slice_regression) continue;
    Refuse(absl::StrFormat(
        "slice '%s': on the data of %d nodes the loss is worse by %.4f nats a token, allowed are "
        "%g",
        slice, sum.nodes, change, plan_.max_slice_regression));
    return false;
  }
  return true;
}

}  // namespace fedge
