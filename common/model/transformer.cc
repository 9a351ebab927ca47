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

  void Bind(const LoraAdapter* adapter, Precision precision) { bound_.Bind(adapter, precision); }
  // The loss, and with a sink the gradients, of the bound adapter.
  LossSum Run(const Batch& batch, const GradientSink* sink, absl::Span<float> token_nats,
              const Dropout& dropout = Dropout());
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
    Dropout dropout;
  };
  void EnsurePositions(int64_t count);
  LayerInput Input(const Geometry& geometry, size_t layer, const float* x);
  void GatherTargets(const Batch& batch);
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
  std::vector<RopeTable> rope_;       // [kRopeKinds]
  std::vector<int64_t> branch_ends_;  // rows of each adapter: one has all
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
  input.dropout = geometry.dropout;
  input.dropout.sequence_length = geometry.length;
  branch_ends_ = {input.rows()};
  input.branch_ends = branch_ends_;
  input.x = x;
  return input;
}

LossSum Transformer::Engine::Run(const Batch& batch, const GradientSink* sink,
                                 absl::Span<float> token_nats, const Dropout& dropout) {
  CheckBatch(batch, model_.config().vocab_size);
  std::fill(token_nats.begin(), token_nats.end(), 0.0f);
  GatherTargets(batch);
  LossSum loss;
  loss.num_tokens = scored_.size();
  if (loss.num_tokens == 0) return loss;
  const Geometry geometry = {batch.batch_size, batch.length, 0, batch.length, dropout};
  const float* const x = ForwardLayers(batch, geometry, sink);
  if (sink == nullptr) {
    loss.nats = head_.Forward(x, scored_, token_nats);
    return loss;
  }
  const int64_t size = batch.batch_size * batch.length * model_.config().embedding_length;
  std::fill_n(gradient_.Get(size), size, 0.0f);
  loss.nats = head_.ForwardBackward(x, scored_, *sink, token_nats, gradient_.data());
  BackwardLayers(batch, geometry, *sink);
  return loss;
}

void Transformer::Engine::GatherTargets(const Batch& batch) {
  scored_.where.clear();
  scored_.targets.clear();
  scored_.weights.clear();
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    if (batch.targets[i] == kNoToken) continue;
    scored_.where.push_back(static_cast<int64_t>(i));
    scored_.targets.push_back(batch.targets[i]);
    scored_.weights.push_back(batch.weights.empty() ? 1.0f : batch.weights[i]);
  }
}

size_t Transformer::Engine::FirstKeptLayer(const Batch& batch) const {
  const int64_t bytes =
      LayerActivations::Bytes(model_.config(), batch.batch_size * batch.length, bound_.max_rank());
  const int64_t layers = model_.config().block_count;
  const int64_t kept = std::clamp<int64_t>(options_.activation_budget_bytes / bytes, 1, layers);
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
  const Geometry geometry = {1, length, past, context, Dropout()};
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
    : model_(std::move(model)) {
  FEDGE_CHECK(model_ != nullptr && pool != nullptr);
  engine_ = std::make_unique<Engine>(*model_, pool, options);
}

Transformer::~Transformer() = default;

LossSum Transformer::Loss(const Batch& batch, const LoraAdapter* adapter,
                          absl::Span<float> token_nats, Precision precision) {
  FEDGE_CHECK(token_nats.empty() || token_nats.size() == batch.tokens.size());
  engine_->Bind(adapter, precision);
  return engine_->Run(batch, nullptr, token_nats);
}

LossSum Transformer::LossAndGradient(const Batch& batch, const LoraAdapter& adapter,
                                     float grad_scale, absl::Span<float> gradient,
                                     const Dropout& dropout) {
  FEDGE_CHECK(gradient.size() == adapter.values().size(), "gradient of ", gradient.size(),
              " values for an adapter of ", adapter.values().size());
  engine_->Bind(&adapter, training_precision_);
  GradientSink sink;
  sink.scale = grad_scale;
  sink.spec = &adapter.spec();
  sink.adapter = gradient.data();
  FEDGE_CHECK(dropout.rate >= 0 && dropout.rate < 1, "dropout ", dropout.rate);
  return engine_->Run(batch, &sink, {}, dropout);
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
  GradientSink sink;
  sink.scale = grad_scale;
  sink.weights = &gradients;
  return engine_->Run(batch, &sink, {});
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
