#include "tools/simulate/held_out.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "client/local_examples.h"
#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {
namespace {

// Pieces of work: small enough to keep all workers busy to the end, and of a size that does not
// depend on their number.
constexpr int64_t kExamplesAPiece = 16;
constexpr int64_t kQuestionsAPiece = 8;

int64_t Pieces(size_t items, int64_t piece) {
  return (static_cast<int64_t>(items) + piece - 1) / piece;
}

template <typename T>
absl::Span<const T> Piece(const std::vector<T>& items, int64_t index, int64_t piece) {
  return absl::MakeConstSpan(items).subspan(static_cast<size_t>(index * piece),
                                            static_cast<size_t>(piece));
}

void SortLongestFirst(std::vector<Example>& examples) {
  std::stable_sort(examples.begin(), examples.end(), [](const Example& a, const Example& b) {
    return a.tokens.size() > b.tokens.size();
  });
}

}  // namespace

absl::StatusOr<HeldOut> HeldOut::Make(const std::vector<NodeRecords>& nodes,
                                      const HeldOutOptions& options, WorkerPool& pool) {
  HeldOut held;
  const Tokenizer& tokenizer = pool.base().tokenizer();
  std::vector<std::vector<Example>> all(nodes.size());
  held.node_samples_.resize(nodes.size());
  pool.ForEach(static_cast<int64_t>(nodes.size()), [&](int64_t node, Transformer&) {
    const auto n = static_cast<size_t>(node);
    for (const Record& record : nodes[n].records) {
      if (!IsValidation(record, options.split_seed, options.validation_fraction)) continue;
      for (Example& example : MakeExamples(record, tokenizer, options.length)) {
        if (example.num_targets > 0) all[n].push_back(std::move(example));
      }
    }
    held.node_samples_[n] =
        BoundedSample(all[n], options.max_tokens_per_node,
                      Rng::Stream(options.split_seed, absl::StrCat("node/", nodes[n].node)));
    SortLongestFirst(held.node_samples_[n]);
  });
  std::vector<Example> pooled;
  for (std::vector<Example>& examples : all) {
    std::move(examples.begin(), examples.end(), std::back_inserter(pooled));
  }
  held.sample_ =
      BoundedSample(pooled, options.max_tokens, Rng::Stream(options.split_seed, "held-out"));
  SortLongestFirst(held.sample_);
  for (const Example& example : held.sample_) held.tokens_ += example.num_targets;
  if (held.tokens_ == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "no held-out token over ", nodes.size(), " nodes at a validation fraction of ",
        options.validation_fraction, "; give more data or raise training.validation_fraction"));
  }
  RETURN_IF_ERROR(held.MakeSlices(nodes, options, tokenizer));
  held.MakeQuestions(nodes, options, tokenizer);
  return held;
}

absl::Status HeldOut::MakeSlices(const std::vector<NodeRecords>& nodes,
                                 const HeldOutOptions& options, const Tokenizer& tokenizer) {
  if (!options.slice_by) return absl::OkStatus();
  for (const NodeRecords& node : nodes) {
    for (const Record& record : node.records) {
      const std::string slice = SliceName(record, *options.slice_by);
      if (slice.empty() || !IsValidation(record, options.split_seed, options.validation_fraction)) {
        continue;
      }
      for (Example& example : MakeExamples(record, tokenizer, options.length)) {
        slices_[slice].push_back(std::move(example));
      }
    }
  }
  if (slices_.size() > kMaxSlices) {
    return absl::FailedPreconditionError(absl::StrCat("run.gate.slices: the held-out records name ",
                                                      slices_.size(), " slices, at most ",
                                                      kMaxSlices));
  }
  for (auto& [name, examples] : slices_) {
    examples = BoundedSample(examples, options.max_tokens / static_cast<int64_t>(slices_.size()),
                             Rng::Stream(options.split_seed, absl::StrCat("slice/", name)));
    SortLongestFirst(examples);
  }
  return absl::OkStatus();
}

std::vector<std::string> HeldOut::slices() const {
  std::vector<std::string> names;
  for (const auto& [name, examples] : slices_) names.push_back(name);
  return names;
}

Measurement HeldOut::MeasureSlices(const LoraAdapter* adapter, WorkerPool& pool) const {
  const int64_t pieces = Pieces(sample_.size(), kExamplesAPiece);
  std::vector<const std::vector<Example>*> slices;
  for (const auto& [name, examples] : slices_) slices.push_back(&examples);
  std::vector<LossSum> losses(static_cast<size_t>(pieces) + slices.size());
  pool.ForEach(static_cast<int64_t>(losses.size()), [&](int64_t i, Transformer& transformer) {
    losses[static_cast<size_t>(i)] =
        EvaluateLoss(transformer, adapter,
                     i < pieces ? Piece(sample_, i, kExamplesAPiece)
                                : absl::MakeConstSpan(*slices[static_cast<size_t>(i - pieces)]));
  });
  Measurement measured;
  for (size_t i = 0; i < static_cast<size_t>(pieces); ++i) measured.total += losses[i];
  size_t next = static_cast<size_t>(pieces);
  for (const auto& [name, examples] : slices_) measured.slices[name] = losses[next++];
  return measured;
}

void HeldOut::MakeQuestions(const std::vector<NodeRecords>& nodes, const HeldOutOptions& options,
                            const Tokenizer& tokenizer) {
  if (options.max_questions <= 0) return;
  std::vector<Record> labelled;
  for (const NodeRecords& node : nodes) {
    for (const Record& record : node.records) {
      if (record.has_completion &&
          IsValidation(record, options.split_seed, options.validation_fraction)) {
        labelled.push_back(record);
      }
    }
  }
  if (labelled.empty()) return;
  absl::StatusOr<LabelTask> task =
      MakeLabelTask(labelled, tokenizer, options.max_labels, options.length);
  if (!task.ok()) return;  // free-form completions: there is nothing to choose from
  task_ = *std::move(task);
  questions_ = std::exchange(task_.questions, {});
  Rng rng = Rng::Stream(options.split_seed, "label-questions");
  rng.Shuffle(absl::MakeSpan(questions_));
  if (static_cast<int64_t>(questions_.size()) > options.max_questions) {
    questions_.resize(static_cast<size_t>(options.max_questions));
  }
}

absl::StatusOr<QualityPoint> HeldOut::Measure(const LoraAdapter* adapter, bool with_labels,
                                              WorkerPool& pool) const {
  const int64_t loss_pieces = Pieces(sample_.size(), kExamplesAPiece);
  const int64_t label_pieces = with_labels ? Pieces(questions_.size(), kQuestionsAPiece) : 0;
  std::vector<LossSum> losses(static_cast<size_t>(loss_pieces));
  std::vector<AccuracyResult> answers(static_cast<size_t>(label_pieces));
  std::vector<absl::Status> errors(static_cast<size_t>(label_pieces));
  pool.ForEach(loss_pieces + label_pieces, [&](int64_t i, Transformer& transformer) {
    if (i < loss_pieces) {
      losses[static_cast<size_t>(i)] =
          EvaluateLoss(transformer, adapter, Piece(sample_, i, kExamplesAPiece));
      return;
    }
    const auto piece = static_cast<size_t>(i - loss_pieces);
    absl::StatusOr<AccuracyResult> result = LabelAccuracy(
        transformer, adapter, task_, Piece(questions_, i - loss_pieces, kQuestionsAPiece));
    if (result.ok()) {
      answers[piece] = *result;
    } else {
      errors[piece] = result.status();
    }
  });
  LossSum loss;
  for (const LossSum& piece : losses) loss += piece;  // in order: the same bits for any K
  QualityPoint quality;
  quality.validation_loss = loss.mean();
  if (label_pieces > 0) {
    AccuracyResult total;
    for (size_t i = 0; i < answers.size(); ++i) {
      RETURN_IF_ERROR(errors[i]);
      total.correct += answers[i].correct;
      total.total += answers[i].total;
    }
    quality.label_accuracy = total.accuracy();
  }
  return quality;
}

std::vector<LossSum> HeldOut::MeasureNodes(const LoraAdapter* adapter, WorkerPool& pool) const {
  std::vector<LossSum> losses(node_samples_.size());
  pool.ForEach(static_cast<int64_t>(losses.size()), [&](int64_t node, Transformer& transformer) {
    const auto n = static_cast<size_t>(node);
    losses[n] = EvaluateLoss(transformer, adapter, node_samples_[n]);
  });
  return losses;
}

double HeldOut::majority_accuracy() const {
  if (questions_.empty()) return 0;
  std::vector<int64_t> counts(task_.labels.size());
  for (const LabelQuestion& question : questions_) ++counts[static_cast<size_t>(question.answer)];
  return static_cast<double>(*std::max_element(counts.begin(), counts.end())) /
         static_cast<double>(questions_.size());
}

}  // namespace fedge
