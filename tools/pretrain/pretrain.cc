#include "tools/pretrain/pretrain.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/digest.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/formats/gguf.h"
#include "common/model/transformer.h"
#include "common/tensor/quantize.h"
#include "tools/pretrain/checkpoint.h"
#include "tools/pretrain/corpus.h"
#include "tools/recipes/sentencepiece_model.h"

namespace fedge {
namespace {

constexpr double kSmoothing = 0.95;

absl::Status CheckOptions(const PretrainOptions& options) {
  if (options.corpus_files.empty()) {
    return absl::InvalidArgumentError("no corpus file to train on");
  }
  if (options.steps < 1 || options.batch_size < 1 || options.threads < 1 ||
      options.checkpoint_every < 1 || options.eval_every < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "steps (", options.steps, "), batch size (", options.batch_size, "), threads (",
        options.threads, ") and steps between checkpoints (", options.checkpoint_every,
        ") must be at least 1, steps between evaluations (", options.eval_every, ") at least 0"));
  }
  if (options.length > options.shape.context_length) {
    return absl::InvalidArgumentError(absl::StrCat("a row of ", options.length,
                                                   " tokens exceeds the context length ",
                                                   options.shape.context_length));
  }
  // A type that cannot be written shows now, not after the training.
  if (options.output_type == DType::kF32) return absl::OkStatus();
  const std::vector<float> block(static_cast<size_t>(BlockElements(options.output_type)));
  std::vector<uint8_t> bytes(static_cast<size_t>(BlockBytes(options.output_type)));
  return Quantize(options.output_type, block, bytes.data());
}

// Everything that decides the weights of a step, so that a checkpoint never continues another run.
Digest RunIdentity(const PretrainOptions& options, const Digest& vocabulary, const Digest& corpus) {
  const LlamaShape& s = options.shape;
  return Sha256Of(absl::StrCat(
      "pretrain 1\n", vocabulary.Hex(), "\n", corpus.Hex(), "\n", s.embedding_length, " ",
      s.block_count, " ", s.head_count, " ", s.head_count_kv, " ", s.feed_forward_length, " ",
      s.context_length, " ", s.rope_freq_base, " ", s.rms_epsilon, "\n", options.steps, " ",
      options.batch_size, " ", options.length, " ", options.peak_rate, " ", options.warmup_steps,
      " ", options.final_fraction, " ", options.weight_decay, " ", options.beta2, " ",
      options.clip_norm, " ", options.seed));
}

// One run: the pieces that live as long as the loop.
class PretrainRun {
 public:
  PretrainRun(const PretrainOptions& options, const PretrainEvents& events, Env& env, Clock& clock)
      : options_(options), events_(events), env_(env), clock_(clock), pool_(options.threads) {}

  absl::StatusOr<PretrainResult> Run();

 private:
  absl::Status Prepare();
  absl::Status Train();
  absl::StatusOr<double> Step(PretrainProgress& progress);
  double ClipAll();
  absl::Status Checkpoint();
  absl::Status WriteOutput();
  double HoldoutLoss(Transformer& transformer) const;

  const PretrainOptions& options_;
  const PretrainEvents& events_;
  Env& env_;
  Clock& clock_;
  ThreadPool pool_;
  std::unique_ptr<LlamaWeights> weights_;
  std::unique_ptr<TokenCorpus> corpus_;
  std::unique_ptr<Transformer> transformer_;
  std::vector<AdamW> optimizer_;
  WeightGradients gradients_;
  LearningRate rate_;
  PretrainState state_;
  Digest identity_;
  PretrainResult result_;
};

absl::Status PretrainRun::Prepare() {
  ASSIGN_OR_RETURN(const std::string vocab_bytes, env_.ReadFile(options_.vocabulary_file));
  absl::StatusOr<SentencePieceVocab> vocab = ParseSentencePieceModel(vocab_bytes);
  if (!vocab.ok()) return Annotate(vocab.status(), options_.vocabulary_file);
  ASSIGN_OR_RETURN(weights_,
                   LlamaWeights::Create(options_.shape, *vocab, options_.labels, options_.seed));
  CorpusOptions corpus;
  corpus.length = options_.length;
  corpus.holdout_fraction = options_.holdout_fraction;
  corpus.max_holdout_windows = options_.max_holdout_windows;
  corpus.seed = options_.seed;
  ASSIGN_OR_RETURN(TokenCorpus read,
                   TokenCorpus::Read(options_.corpus_files, weights_->model()->tokenizer(), corpus,
                                     pool_, env_));
  corpus_ = std::make_unique<TokenCorpus>(std::move(read));
  transformer_ = std::make_unique<Transformer>(weights_->model(), &pool_);

  for (size_t i = 0; i < weights_->num_tensors(); ++i) {
    AdamWOptions adamw;
    adamw.beta2 = options_.beta2;
    adamw.weight_decay = weights_->is_matrix(i) ? options_.weight_decay : 0.0f;
    optimizer_.emplace_back(static_cast<int64_t>(weights_->values(i).size()), adamw);
    gradients_.emplace_back(weights_->values(i).size());
  }
  rate_.peak = options_.peak_rate;
  rate_.warmup_steps = options_.warmup_steps;
  rate_.total_steps = options_.steps;
  rate_.final_fraction = options_.final_fraction;

  state_.weights = weights_.get();
  state_.optimizer = &optimizer_;
  identity_ = RunIdentity(options_, Sha256Of(vocab_bytes), corpus_->digest());
  if (!options_.checkpoint_file.empty()) {
    RETURN_IF_ERROR(ReadCheckpoint(options_.checkpoint_file, identity_, env_, state_).status());
    RETURN_IF_ERROR(Checkpoint());  // a folder that cannot be written shows now, not in an hour
  }
  result_.start = {weights_->num_parameters(), corpus_->num_documents(),       corpus_->num_bytes(),
                   corpus_->num_tokens(),      corpus_->num_training_tokens(), state_.step};
  return absl::OkStatus();
}

// Scales the gradients of all tensors together; returns their norm before.
double PretrainRun::ClipAll() {
  double squares = 0;
  for (std::vector<float>& gradient : gradients_) {
    const double norm = ClipByGlobalNorm(0, absl::MakeSpan(gradient));
    squares += norm * norm;
  }
  const double norm = std::sqrt(squares);
  if (options_.clip_norm > 0 && norm > options_.clip_norm && std::isfinite(norm)) {
    const float factor = static_cast<float>(options_.clip_norm / norm);
    for (std::vector<float>& gradient : gradients_) {
      for (float& value : gradient) value *= factor;
    }
  }
  return norm;
}

// One optimizer step; returns the batch's loss.
absl::StatusOr<double> PretrainRun::Step(PretrainProgress& progress) {
  const Batch batch = corpus_->TrainingBatch(state_.step, options_.batch_size);
  const int64_t targets = static_cast<int64_t>(batch.targets.size()) -
                          std::count(batch.targets.begin(), batch.targets.end(), kNoToken);
  for (std::vector<float>& gradient : gradients_) {
    std::fill(gradient.begin(), gradient.end(), 0.0f);
  }
  const LossSum loss = transformer_->LossAndWeightGradients(
      batch, static_cast<float>(1.0 / static_cast<double>(std::max<int64_t>(1, targets))),
      gradients_);
  progress.learning_rate = rate_.At(state_.step);
  progress.grad_norm = ClipAll();
  if (!std::isfinite(loss.nats) || !std::isfinite(progress.grad_norm)) {
    return absl::InternalError(absl::StrCat("step ", state_.step + 1,
                                            ": the loss or its gradient is not finite at learning "
                                            "rate ",
                                            progress.learning_rate, "; lower the learning rate"));
  }
  pool_.ParallelFor(static_cast<int64_t>(optimizer_.size()), [&](int64_t tensor) {
    const size_t i = static_cast<size_t>(tensor);
    optimizer_[i].Step(gradients_[i], progress.learning_rate, weights_->values(i));
  });
  ++state_.step;
  return loss.mean();
}

double PretrainRun::HoldoutLoss(Transformer& transformer) const {
  LossSum sum;
  for (const Batch& batch : corpus_->HoldoutBatches(options_.batch_size)) {
    sum += transformer.Loss(batch, nullptr);
  }
  return sum.mean();
}

absl::Status PretrainRun::Checkpoint() {
  if (options_.checkpoint_file.empty()) return absl::OkStatus();
  return WriteCheckpoint(state_, identity_, options_.checkpoint_file, env_);
}

absl::Status PretrainRun::Train() {
  const absl::Duration begin = clock_.Monotonic();
  const int64_t first = state_.step;
  while (state_.step < options_.steps) {
    PretrainProgress progress;
    ASSIGN_OR_RETURN(progress.loss, Step(progress));
    if (state_.step == first + 1) result_.first_loss = progress.loss;
    state_.smooth_loss = state_.step == 1
                             ? progress.loss
                             : kSmoothing * state_.smooth_loss + (1 - kSmoothing) * progress.loss;
    progress.step = state_.step;
    progress.steps = options_.steps;
    progress.smooth_loss = state_.smooth_loss;
    if (options_.holdout_fraction > 0 &&
        (state_.step == options_.steps ||
         (options_.eval_every > 0 && state_.step % options_.eval_every == 0))) {
      progress.evaluated = true;
      progress.holdout_loss = HoldoutLoss(*transformer_);
      result_.holdout_loss = progress.holdout_loss;
    }
    const absl::Duration elapsed = clock_.Monotonic() - begin;
    const int64_t done = state_.step - first;
    const double seconds = absl::ToDoubleSeconds(elapsed);
    progress.tokens_per_second =
        seconds > 0 ? static_cast<double>(done * options_.batch_size * options_.length) / seconds
                    : 0;
    progress.left = elapsed / done * (options_.steps - state_.step);
    const bool go_on = !events_.on_step || events_.on_step(progress);
    if (!go_on || state_.step % options_.checkpoint_every == 0) RETURN_IF_ERROR(Checkpoint());
    if (!go_on) {
      return absl::CancelledError(absl::StrCat(
          "stopped after step ", state_.step, " of ", options_.steps,
          options_.checkpoint_file.empty() ? "" : "; the same command continues from there"));
    }
  }
  result_.last_loss = state_.smooth_loss;
  return absl::OkStatus();
}

absl::Status PretrainRun::WriteOutput() {
  ASSIGN_OR_RETURN(const std::string bytes, weights_->Export(options_.output_type));
  result_.output_bytes = bytes.size();
  ASSIGN_OR_RETURN(std::shared_ptr<const GgufFile> file,
                   GgufFile::Parse(bytes, options_.output_file));
  ASSIGN_OR_RETURN(std::shared_ptr<const BaseModel> model, BaseModel::FromGguf(std::move(file)));
  if (options_.holdout_fraction > 0) {
    Transformer transformer(std::move(model), &pool_);
    result_.output_holdout_loss = HoldoutLoss(transformer);
    if (result_.holdout_loss == 0) result_.holdout_loss = HoldoutLoss(*transformer_);
  }
  RETURN_IF_ERROR(env_.WriteFileAtomic(options_.output_file, bytes));
  if (!options_.checkpoint_file.empty() && env_.Exists(options_.checkpoint_file)) {
    return env_.Remove(options_.checkpoint_file);
  }
  return absl::OkStatus();
}

absl::StatusOr<PretrainResult> PretrainRun::Run() {
  RETURN_IF_ERROR(Prepare());
  if (events_.on_start) events_.on_start(result_.start);
  RETURN_IF_ERROR(Train());
  RETURN_IF_ERROR(WriteOutput());
  return result_;
}

}  // namespace

absl::StatusOr<PretrainResult> Pretrain(const PretrainOptions& options,
                                        const PretrainEvents& events, Env& env, Clock& clock) {
  RETURN_IF_ERROR(CheckOptions(options));
  return PretrainRun(options, events, env, clock).Run();
}

}  // namespace fedge
