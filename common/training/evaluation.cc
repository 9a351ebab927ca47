#include "common/training/evaluation.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <queue>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

// Tokens of a forward pass: enough rows to keep the matrix products busy.
constexpr int64_t kTokensPerPass = 1024;

// Windows [first, first + count) of `tokens` as one batch whose targets are the scored positions.
Batch WindowBatch(absl::Span<const TokenId> tokens, int64_t first, int64_t count, int64_t context,
                  TokenId bos) {
  Batch batch;
  batch.batch_size = count;
  batch.length = context;
  const auto begin = tokens.begin() + first * context;
  batch.tokens.assign(begin, begin + count * context);
  batch.targets.assign(batch.tokens.size(), kNoToken);
  for (int64_t window = 0; window < count; ++window) {
    const size_t row = static_cast<size_t>(window * context);
    for (size_t i = static_cast<size_t>(context / 2); i + 1 < static_cast<size_t>(context); ++i) {
      batch.targets[row + i] = batch.tokens[row + i + 1];
    }
    if (bos != kNoToken) batch.tokens[row] = bos;
  }
  return batch;
}

double LogSumExp(absl::Span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - top);
  return top + std::log(sum);
}

// What follows a prompt when it is answered with `label`: MakeExamples of the pair, so that the
// question is cut and tokenized exactly as in training.
Example AnsweredExample(const Record& record, absl::string_view label, const Tokenizer& tokenizer,
                        int64_t max_length) {
  Record answered = record;
  answered.spans.back().text = std::string(label);
  std::vector<Example> examples = MakeExamples(answered, tokenizer, max_length);
  return examples.empty() ? Example() : std::move(examples.back());
}

// Where the answer begins in an example: the index of the first trained target.
size_t FirstTarget(const Example& example) {
  size_t i = 0;
  while (i < example.targets.size() && example.targets[i] == kNoToken) ++i;
  return i;
}

// Labels that begin with the same tokens.
struct Branch {
  double nats = 0;  // -log p of the tokens so far
  size_t depth = 0;
  std::vector<int64_t> labels;  // ascending

  // The queue's order: least nats first, then the longer (it may be complete), then lower labels.
  bool operator<(const Branch& other) const {
    if (nats != other.nats) return nats > other.nats;
    if (depth != other.depth) return depth < other.depth;
    return labels.front() > other.labels.front();
  }
};

// The label with the most likely tokens after what `cache` holds. Best-first search over the
// labels' prefix tree: nats only grow along a branch, so the first complete label is the best one,
// and unlikely branches are never evaluated.
absl::StatusOr<int64_t> BestLabel(Transformer& transformer, const LoraAdapter* adapter,
                                  const LabelTask& task, std::vector<float> prompt_logits,
                                  KvCache& cache) {
  const int64_t prompt_size = cache.size();
  std::priority_queue<Branch> queue;
  Branch root;
  for (size_t i = 0; i < task.labels.size(); ++i) root.labels.push_back(static_cast<int64_t>(i));
  queue.push(std::move(root));
  while (true) {
    const Branch branch = queue.top();
    queue.pop();
    const std::vector<TokenId>& first =
        task.label_tokens[static_cast<size_t>(branch.labels.front())];
    std::vector<float> logits;
    std::map<TokenId, Branch> next;
    for (const int64_t label : branch.labels) {
      const std::vector<TokenId>& tokens = task.label_tokens[static_cast<size_t>(label)];
      if (tokens.size() == branch.depth) return label;
      next[tokens[branch.depth]].labels.push_back(label);
    }
    if (branch.depth == 0) {
      logits = std::move(prompt_logits);
    } else {
      RETURN_IF_ERROR(cache.Truncate(prompt_size));
      ASSIGN_OR_RETURN(logits, transformer.Decode(absl::MakeConstSpan(first).first(branch.depth),
                                                  adapter, cache));
    }
    const double normalizer = LogSumExp(logits);
    for (auto& [token, child] : next) {
      child.nats =
          branch.nats + normalizer - static_cast<double>(logits[static_cast<size_t>(token)]);
      child.depth = branch.depth + 1;
      queue.push(std::move(child));
    }
  }
}

}  // namespace

absl::StatusOr<PerplexityResult> Perplexity(
    Transformer& transformer, const LoraAdapter* adapter, absl::string_view text,
    const PerplexityOptions& options,
    const std::function<void(const PerplexityResult&)>& on_window) {
  const Tokenizer& tokenizer = transformer.model().tokenizer();
  const int64_t context = options.context;
  if (context < 4) {
    return absl::InvalidArgumentError(
        absl::StrCat("a context of ", context, " tokens is too short; give at least 4"));
  }
  const std::vector<TokenId> tokens = tokenizer.Encode(text);
  const int64_t available = static_cast<int64_t>(tokens.size()) / context;
  if (available < 2) {
    return absl::InvalidArgumentError(absl::StrCat("the text has ", tokens.size(),
                                                   " tokens, fewer than two windows of ", context,
                                                   "; give more text or a shorter context"));
  }
  const int64_t windows =
      options.max_windows > 0 ? std::min(available, options.max_windows) : available;
  const int64_t rows = std::max<int64_t>(1, kTokensPerPass / context);
  const TokenId bos = tokenizer.adds_bos() ? tokenizer.bos() : kNoToken;
  PerplexityResult result;
  LossSum sum;
  for (int64_t first = 0; first < windows; first += rows) {
    const int64_t count = std::min(rows, windows - first);
    sum += transformer.Loss(WindowBatch(tokens, first, count, context, bos), adapter, {},
                            options.precision);
    result.windows = first + count;
    result.scored_tokens = sum.num_tokens;
    result.mean_nats = sum.mean();
    result.perplexity = std::exp(result.mean_nats);
    if (on_window) on_window(result);
  }
  return result;
}

LossSum EvaluateLoss(Transformer& transformer, const LoraAdapter* adapter,
                     absl::Span<const Example> examples, int64_t rows) {
  LossSum sum;
  for (const Batch& batch : EvaluationBatches(examples, rows)) {
    sum += transformer.Loss(batch, adapter);
  }
  return sum;
}

absl::StatusOr<LabelTask> MakeLabelTask(absl::Span<const Record> records,
                                        const Tokenizer& tokenizer, int64_t max_labels,
                                        int64_t max_length) {
  std::map<std::string, const Record*> first_of_label;  // sorted; any record with that label
  for (const Record& record : records) {
    if (record.has_completion) first_of_label.try_emplace(record.spans.back().text, &record);
  }
  const int64_t num_labels = static_cast<int64_t>(first_of_label.size());
  if (num_labels < 2 || num_labels > max_labels) {
    return absl::FailedPreconditionError(
        absl::StrCat("label scoring needs prompt/completion records with 2 to ", max_labels,
                     " different completions, not ", num_labels));
  }
  LabelTask task;
  std::map<std::string, int64_t> index;
  for (const auto& [label, record] : first_of_label) {
    const Example example = AnsweredExample(*record, label, tokenizer, max_length);
    std::vector<TokenId> tokens;
    for (const TokenId target : example.targets) {
      if (target != kNoToken) tokens.push_back(target);
    }
    if (tokens.empty() || static_cast<int64_t>(tokens.size()) >= max_length) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the label \"", label, "\" does not fit into ", max_length, " tokens beside a prompt"));
    }
    index[label] = static_cast<int64_t>(task.labels.size());
    task.labels.push_back(label);
    task.label_tokens.push_back(std::move(tokens));
  }
  for (const Record& record : records) {
    if (!record.has_completion) continue;
    const std::string& label = record.spans.back().text;
    Example example = AnsweredExample(record, label, tokenizer, max_length);
    const size_t first = FirstTarget(example);
    if (first >= example.targets.size()) continue;  // an empty prompt: nothing to answer
    LabelQuestion question;
    question.answer = index.at(label);
    question.prompt.assign(example.tokens.begin(),
                           example.tokens.begin() + static_cast<std::ptrdiff_t>(first) + 1);
    task.questions.push_back(std::move(question));
  }
  return task;
}

absl::StatusOr<AccuracyResult> LabelAccuracy(Transformer& transformer, const LoraAdapter* adapter,
                                             const LabelTask& task,
                                             absl::Span<const LabelQuestion> questions) {
  size_t longest_label = 0;
  for (const std::vector<TokenId>& tokens : task.label_tokens) {
    longest_label = std::max(longest_label, tokens.size());
  }
  size_t longest_prompt = 0;
  for (const LabelQuestion& question : questions) {
    longest_prompt = std::max(longest_prompt, question.prompt.size());
  }
  AccuracyResult result;
  KvCacheOptions cache_options;
  cache_options.type = KvType::kF32;
  cache_options.rewind = static_cast<int64_t>(longest_label);
  KvCache cache(transformer.model().config(), static_cast<int64_t>(longest_prompt + longest_label),
                cache_options);
  for (const LabelQuestion& question : questions) {
    RETURN_IF_ERROR(cache.Truncate(0));
    ASSIGN_OR_RETURN(std::vector<float> logits,
                     transformer.Decode(question.prompt, adapter, cache));
    ASSIGN_OR_RETURN(const int64_t label,
                     BestLabel(transformer, adapter, task, std::move(logits), cache));
    ++result.total;
    if (label == question.answer) ++result.correct;
  }
  return result;
}

}  // namespace fedge
