#include "common/model/transformer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/model/bound_model.h"
#include "common/model/layer.h"
#include "common/model/layer_inputs.h"
#include "common/model/loss_head.h"
#include "common/model/ops.h"

namespace fedge {
namespace {

// Tokens of one pass of Decode.
constexpr int64_t kDecodedTokens = 512;

void CheckBatch(const Batch& batch, int64_t vocabulary) {
  const size_t size = static_cast<size_t>(batch.batch_size * batch.length);
  FEDGE_CHECK(batch.tokens.size() == size && batch.targets.size() == size, "batch of ",
              batch.batch_size, " x ", batch.length, " with ", batch.tokens.size(), " tokens and ",
              batch.targets.size(), " targets");
  FEDGE_CHECK(batch.weights.empty() || batch.weights.size() == size, batch.weights.size(),
              " weights for ", size, " targets");
  for (size_t i = 0; i < size; ++i) {
    const TokenId token = batch.tokens[i];
    FEDGE_CHECK(token >= 0 && token < vocabulary, "token ", token, " of ", vocabulary);
    const TokenId target = batch.targets[i];
    FEDGE_CHECK(target == kNoToken || (target >= 0 && target < vocabulary), "target ", target,
                " of ", vocabulary);
  }
}

}  // namespace

class Transformer::Engine {
 public:
  Engine(const BaseModel& model, ThreadPool* pool, const TransformerOptions& options);

  // `adapter` may be null.
  void Bind(const LoraAdapter* adapter, Precision precision);
  void Bind(absl::Span<const AdapterPass> adapters, Precision precision);
  // The loss of the bound adapter or the bare base.
  LossSum Loss(const Batch& batch, absl::Span<float> token_nats);
  // The losses and gradients of the bound adapters.
  std::vector<LossSum> Gradients(const Batch& batch, absl::Span<const AdapterPass> adapters);
  LossSum Gradients(const Batch& batch, float scale, WeightGradients& weights);
  // The last token's output of the last layer; keys and values are added to each layer's cache.
  // `context`: the tokens that the caches can hold. Null when some are not finite.
  const float* Decode(absl::Span<const TokenId> tokens, int64_t past, int64_t context,
                      absl::Span<KvLayer> caches);
  std::vector<float> Logits(const float* x);

 private:
  // Layers from this one on keep their activations from forward to backward.
  size_t FirstKeptLayer(const Batch& batch) const;
  LayerActivations& Activations(size_t layer, size_t first_kept) {
    return activations_[layer > first_kept ? layer - first_kept : 0];
  }
  // A run's rows: `context` decides which frequencies RoPE has.
  struct Geometry {
    int64_t batch, length, past, context;
  };
  void EnsurePositions(int64_t count);
  LayerInput Input(const Geometry& geometry, size_t layer, const float* x);
  // Sets whose rows are whose; none: they are one adapter's or nobody's.
  void SetParts(const Batch& batch, absl::Span<const AdapterPass> adapters);
  // The next `rows` of the batch that have a target, as the rows of one adapter.
  void GatherTargets(const Batch& batch, int64_t rows, float scale);
  // The loss of each part, and with a sink the gradients.
  std::vector<LossSum> Run(const Batch& batch, const GradientSink* sink,
                           absl::Span<float> token_nats);
  // Returns the last layer's output.
  const float* ForwardLayers(const Batch& batch, const Geometry& geometry,
                             const GradientSink* sink);
  void BackwardLayers(const Batch& batch, const Geometry& geometry, const GradientSink& sink);

  const BaseModel& model_;
  ThreadPool& pool_;
  const TransformerOptions options_;
  BoundModel bound_;
  FloatBuffer between_;  // of the head and the layers in turn
  LossHead head_;
  std::vector<RopeTable> rope_;  // [kRopeKinds]
  // Of each adapter: where its rows end, and what it drops (empty: none drops anything).
  std::vector<int64_t> branch_ends_;
  std::vector<Dropout> dropouts_;
  LayerWorkspace workspace_;
  // Of the kept layers from the first on, whose slot also serves those below it: in the forward
  // pass before, in the backward pass after.
  std::vector<LayerActivations> activations_;
  LayerInputs inputs_;
  FloatBuffer gradient_;  // with respect to a layer's output, then its input: [B*T, C]
  ScoredRows scored_;
};

Transformer::Engine::Engine(const BaseModel& model, ThreadPool* pool,
                            const TransformerOptions& options)
    : model_(model),
      pool_(*pool),
      options_(options),
      bound_(model),
      head_(&bound_, pool, options.logit_rows, &between_),
      workspace_(pool, &between_),
      activations_(model.layers().size()),
      inputs_(model.layers().size(), pool) {
  for (size_t kind = 0; kind < kRopeKinds; ++kind) {
    rope_.emplace_back(model.rope(static_cast<RopeKind>(kind)), model.config().family->rope_pairs);
  }
}

void Transformer::Engine::EnsurePositions(int64_t count) {
  for (RopeTable& table : rope_) table.EnsurePositions(count);
}

LayerInput Transformer::Engine::Input(const Geometry& geometry, size_t layer, const float* x) {
  LayerInput input;
  input.config = &model_.config();
  input.rope = &rope_[model_.RopeKindOf(model_.layers()[layer], geometry.context)];
  input.batch = geometry.batch;
  input.length = geometry.length;
  input.past = geometry.past;
  input.dropout = dropouts_;
  input.branch_ends = branch_ends_;
  input.x = x;
  return input;
}

void Transformer::Engine::Bind(const LoraAdapter* adapter, Precision precision) {
  if (adapter == nullptr) return bound_.Bind({}, precision);
  bound_.Bind({adapter}, precision);
}

void Transformer::Engine::Bind(absl::Span<const AdapterPass> adapters, Precision precision) {
  std::vector<const LoraAdapter*> bound;
  for (const AdapterPass& pass : adapters) bound.push_back(pass.adapter);
  bound_.Bind(bound, precision);
}

LossSum Transformer::Engine::Loss(const Batch& batch, absl::Span<float> token_nats) {
  SetParts(batch, {});
  return Run(batch, nullptr, token_nats)[0];
}

std::vector<LossSum> Transformer::Engine::Gradients(const Batch& batch,
                                                    absl::Span<const AdapterPass> adapters) {
  SetParts(batch, adapters);
  std::vector<float*> buffers;
  for (const AdapterPass& pass : adapters) buffers.push_back(pass.gradient.data());
  GradientSink sink;
  sink.spec = &adapters[0].adapter->spec();
  sink.adapters = buffers;
  return Run(batch, &sink, {});
}

LossSum Transformer::Engine::Gradients(const Batch& batch, float scale, WeightGradients& weights) {
  SetParts(batch, {});
  for (float& weight : scored_.weights) weight *= scale;
  GradientSink sink;
  sink.weights = &weights;
  return Run(batch, &sink, {})[0];
}

std::vector<LossSum> Transformer::Engine::Run(const Batch& batch, const GradientSink* sink,
                                              absl::Span<float> token_nats) {
  std::fill(token_nats.begin(), token_nats.end(), 0.0f);
  std::vector<LossSum> losses(scored_.ends.size());
  for (size_t i = 0; i < losses.size(); ++i) {
    losses[i].num_tokens = scored_.ends[i] - (i == 0 ? 0 : scored_.ends[i - 1]);
  }
  if (scored_.size() == 0) return losses;
  const Geometry geometry = {batch.batch_size, batch.length, 0, batch.length};
  const float* const x = ForwardLayers(batch, geometry, sink);
  std::vector<double> nats;
  if (sink == nullptr) {
    nats = head_.Forward(x, scored_, token_nats);
  } else {
    const int64_t size = batch.batch_size * batch.length * model_.config().embedding_length;
    std::fill_n(gradient_.Get(size), size, 0.0f);
    nats = head_.ForwardBackward(x, scored_, *sink, token_nats, gradient_.data());
    BackwardLayers(batch, geometry, *sink);
  }
  for (size_t i = 0; i < losses.size(); ++i) losses[i].nats = nats[i];
  return losses;
}

void Transformer::Engine::SetParts(const Batch& batch, absl::Span<const AdapterPass> adapters) {
  CheckBatch(batch, model_.config().vocab_size);
  scored_ = ScoredRows();
  branch_ends_.clear();
  dropouts_.clear();
  if (adapters.empty()) return GatherTargets(batch, batch.batch_size * batch.length, 1);
  for (const AdapterPass& pass : adapters) {
    GatherTargets(batch, pass.batch_size * batch.length, pass.grad_scale);
    if (pass.dropout.rate == 0) continue;
    dropouts_.push_back(pass.dropout);
    dropouts_.back().sequence_length = batch.length;
  }
}

void Transformer::Engine::GatherTargets(const Batch& batch, int64_t rows, float scale) {
  const int64_t begin = branch_ends_.empty() ? 0 : branch_ends_.back();
  for (int64_t row = begin; row < begin + rows; ++row) {
    const auto i = static_cast<size_t>(row);
    if (batch.targets[i] == kNoToken) continue;
    scored_.where.push_back(row);
    scored_.targets.push_back(batch.targets[i]);
    scored_.weights.push_back(scale * (batch.weights.empty() ? 1.0f : batch.weights[i]));
  }
  branch_ends_.push_back(begin + rows);
  scored_.ends.push_back(scored_.size());
}

size_t Transformer::Engine::FirstKeptLayer(const Batch& batch) const {
  const int64_t bytes =
      LayerActivations::Bytes(model_.config(), batch.batch_size * batch.length, bound_.max_rank());
  const int64_t layers = model_.config().block_count;
  const auto parts = static_cast<int64_t>(branch_ends_.size());
  const int64_t kept =
      std::clamp<int64_t>(parts * options_.activation_budget_bytes / bytes, 1, layers);
  return static_cast<size_t>(layers - kept);
}

const float* Transformer::Engine::ForwardLayers(const Batch& batch, const Geometry& geometry,
                                                const GradientSink* sink) {
  const ModelConfig& config = model_.config();
  const int64_t size = batch.batch_size * batch.length * config.embedding_length;
  EnsurePositions(batch.length);
  const size_t last = bound_.layers().size();
  const size_t first_kept = sink != nullptr ? FirstKeptLayer(batch) : last;
  if (sink == nullptr) {
    inputs_.BeginForward(size);
  } else {
    const bool rounds = options_.bf16_checkpoints && sink->weights == nullptr;
    inputs_.BeginGradient(size, rounds ? first_kept : 0);
  }
  float* x = inputs_.Make(0);
  EmbeddingForward(model_.token_embedding(), batch.tokens, config.embedding_scale, x, pool_);
  for (size_t i = 0; i < last; ++i) {
    if (sink != nullptr) inputs_.Keep(i);
    float* const y = inputs_.Make(i + 1);
    workspace_.Forward(bound_.layers()[i], Input(geometry, i, x), nullptr,
                       Activations(i, first_kept), y);
    x = y;
  }
  return x;
}

// From the top down; a layer whose activations were not kept is computed again from its input.
void Transformer::Engine::BackwardLayers(const Batch& batch, const Geometry& geometry,
                                         const GradientSink& sink) {
  const bool weights = sink.weights != nullptr;
  const size_t first_kept = FirstKeptLayer(batch);
  for (size_t i = bound_.layers().size(); i-- > 0;) {
    const Layer& layer = bound_.layers()[i];
    const LayerInput input = Input(geometry, i, inputs_.Restore(i));
    LayerActivations& kept = Activations(i, first_kept);
    if (i < first_kept) workspace_.Forward(layer, input, nullptr, kept, nullptr);
    // Nothing below the first layer is trained when the embedding is frozen.
    workspace_.Backward(layer, input, bound_.GradientOf(static_cast<int64_t>(i), sink),
                        weights || i > 0, kept, gradient_.data());
  }
  if (!weights) return;
  const ModelConfig& config = model_.config();
  EmbeddingBackward(batch.tokens, config.embedding_length, config.embedding_scale, gradient_.data(),
                    bound_.WeightSink(sink, "token_embd.weight"), pool_);
}

const float* Transformer::Engine::Decode(absl::Span<const TokenId> tokens, int64_t past,
                                         int64_t context, absl::Span<KvLayer> caches) {
  const ModelConfig& config = model_.config();
  const int64_t length = static_cast<int64_t>(tokens.size());
  const int64_t size = length * config.embedding_length;
  const Geometry geometry = {1, length, past, context};
  branch_ends_ = {length};
  dropouts_.clear();
  EnsurePositions(past + length);
  inputs_.BeginForward(size);
  float* x = inputs_.Make(0);
  EmbeddingForward(model_.token_embedding(), tokens, config.embedding_scale, x, pool_);
  for (size_t i = 0; i < bound_.layers().size(); ++i) {
    float* const y = inputs_.Make(i + 1);
    if (!workspace_.Forward(bound_.layers()[i], Input(geometry, i, x), &caches[i], activations_[0],
                            y)) {
      return nullptr;
    }
    x = y;
  }
  return x + (length - 1) * config.embedding_length;
}

std::vector<float> Transformer::Engine::Logits(const float* x) {
  std::vector<float> logits(static_cast<size_t>(model_.config().vocab_size));
  head_.Logits(x, logits.data());
  return logits;
}

Transformer::Transformer(std::shared_ptr<const BaseModel> model, ThreadPool* pool,
                         const TransformerOptions& options)
    : model_(std::move(model)), pool_(pool) {
  FEDGE_CHECK(model_ != nullptr && pool != nullptr);
  set_options(options);
}

void Transformer::set_options(const TransformerOptions& options) {
  engine_.reset();  // the old scratch goes first
  engine_ = std::make_unique<Engine>(*model_, pool_, options);
}

Transformer::~Transformer() = default;

LossSum Transformer::Loss(const Batch& batch, const LoraAdapter* adapter,
                          absl::Span<float> token_nats, Precision precision) {
  FEDGE_CHECK(token_nats.empty() || token_nats.size() == batch.tokens.size());
  engine_->Bind(adapter, precision);
  return engine_->Loss(batch, token_nats);
}

LossSum Transformer::LossAndGradient(const Batch& batch, const LoraAdapter& adapter,
                                     float grad_scale, absl::Span<float> gradient,
                                     const Dropout& dropout) {
  return LossAndGradients(batch, {{&adapter, batch.batch_size, grad_scale, gradient, dropout}})[0];
}

std::vector<LossSum> Transformer::LossAndGradients(const Batch& batch,
                                                   absl::Span<const AdapterPass> adapters) {
  int64_t sequences = 0;
  for (const AdapterPass& pass : adapters) {
    FEDGE_CHECK(pass.gradient.size() == pass.adapter->values().size(), "gradient of ",
                pass.gradient.size(), " values for an adapter of ", pass.adapter->values().size());
    FEDGE_CHECK(pass.dropout.rate >= 0 && pass.dropout.rate < 1, "dropout ", pass.dropout.rate);
    FEDGE_CHECK(pass.dropout.rate == adapters[0].dropout.rate, "adapters that drop ",
                adapters[0].dropout.rate, " and ", pass.dropout.rate);
    FEDGE_CHECK(pass.batch_size >= 0, "an adapter with ", pass.batch_size, " sequences");
    sequences += pass.batch_size;
  }
  FEDGE_CHECK(!adapters.empty() && sequences == batch.batch_size, adapters.size(),
              " adapters with ", sequences, " sequences of ", batch.batch_size);
  engine_->Bind(adapters, training_precision_);
  return engine_->Gradients(batch, adapters);
}

LossSum Transformer::LossAndWeightGradients(const Batch& batch, float grad_scale,
                                            WeightGradients& gradients) {
  const std::vector<GgufTensor>& tensors = model_->file().tensors();
  gradients.resize(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (IsRopeTensor(tensors[i].name)) continue;
    FEDGE_CHECK(tensors[i].type == DType::kF32, "tensor ", tensors[i].name, " is ",
                DTypeName(tensors[i].type), ", pre-training needs F32");
    const size_t size = static_cast<size_t>(tensors[i].num_elements());
    if (gradients[i].empty()) gradients[i].resize(size);
    FEDGE_CHECK(gradients[i].size() == size, "gradient of ", tensors[i].name);
  }
  engine_->Bind(nullptr, Precision::kFloat32);
  return engine_->Gradients(batch, grad_scale, gradients);
}

absl::StatusOr<std::vector<float>> Transformer::Decode(absl::Span<const TokenId> tokens,
                                                       const LoraAdapter* adapter, KvCache& cache,
                                                       Precision precision) {
  const int64_t length = static_cast<int64_t>(tokens.size());
  if (length == 0) return absl::InvalidArgumentError("no tokens to decode");
  if (length > cache.capacity_ - cache.size_) {
    return absl::OutOfRangeError(absl::StrCat(length, " tokens do not fit the context of ",
                                              cache.capacity_, " tokens, ", cache.size_,
                                              " of which are taken"));
  }
  const int64_t vocabulary = model_->config().vocab_size;
  for (const TokenId token : tokens) {
    FEDGE_CHECK(token >= 0 && token < vocabulary, "token ", token, " of ", vocabulary);
  }
  engine_->Bind(adapter, precision);
  const float* last = nullptr;
  for (int64_t begin = 0; begin < length; begin += kDecodedTokens) {
    const int64_t count = std::min(kDecodedTokens, length - begin);
    last = engine_->Decode(tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(count)),
                           cache.size_, cache.capacity_, absl::MakeSpan(cache.layers_));
    if (last == nullptr) {
      const int64_t first = cache.size_;
      RETURN_IF_ERROR(cache.Truncate(0));
      return absl::InternalError(absl::StrCat("tokens ", first, " to ", first + count - 1,
                                              " have keys or values that are not finite; look for "
                                              "damaged weights or a wrong adapter"));
    }
    cache.size_ += count;
  }
  return engine_->Logits(last);
}

}  // namespace fedge
