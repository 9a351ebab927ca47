#include "common/model/transformer.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/model/layer.h"
#include "common/model/ops.h"
#include "common/tensor/row_ops.h"

namespace fedge {
namespace {

// Logits of one chunk of the cross-entropy: enough rows to amortize decoding the head, within this
// many floats (32 MiB).
constexpr int64_t kLogitsPerChunk = int64_t{1} << 23;
constexpr int64_t kMinChunkRows = 32;
constexpr int64_t kMaxChunkRows = 512;

// Where gradients are added: an adapter's flat buffer, or all weights.
struct GradientSink {
  float scale = 1;
  const LoraSpec* spec = nullptr;
  float* adapter = nullptr;
  WeightGradients* weights = nullptr;
};

void BindLinear(const LoraAdapter& adapter, int64_t module, Linear& linear) {
  linear.rank = 0;
  linear.lora.clear();
  if (module < 0) return;
  const LoraModule& description = adapter.spec().modules()[static_cast<size_t>(module)];
  linear.rank = description.rank;
  linear.scale = adapter.spec().scale(description);
  linear.lora.push_back({adapter.a(module).data(), adapter.b(module).data()});
}

LinearGradient AdapterGradient(const GradientSink& sink, int64_t module) {
  LinearGradient gradient;
  if (module < 0) return gradient;
  const LoraModule& description = sink.spec->modules()[static_cast<size_t>(module)];
  float* const a = sink.adapter + description.offset;
  gradient.lora.push_back({a, a + description.a_size()});
  return gradient;
}

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
  Engine(const BaseModel& model, ThreadPool* pool, int64_t activation_budget_bytes);

  void BindAdapter(const LoraAdapter* adapter);
  // The loss, and with a sink the gradients, of the bound adapter.
  LossSum Run(const Batch& batch, const GradientSink* sink, absl::Span<float> token_nats);
  // Logits of the last token; keys and values are appended to the cache of each layer.
  std::vector<float> Decode(absl::Span<const TokenId> tokens, int64_t past,
                            absl::Span<const LayerCache> caches);

 private:
  // Rows of one chunk of the head.
  struct Chunk {
    const int64_t* where;    // row in the batch
    const TokenId* targets;  // of each row
    const float* weights;    // of each row
    int64_t rows;
  };

  // Layers from this one on keep their activations from forward to backward.
  size_t FirstKeptLayer(const Batch& batch) const;
  LayerInput Input(int64_t batch, int64_t length, int64_t past, const float* x);
  void GatherTargets(const Batch& batch);
  void ForwardLayers(const Batch& batch, bool for_gradient);
  LossSum RunHead(const GradientSink* sink, absl::Span<float> token_nats);
  void ForwardHead(const Chunk& chunk);
  void BackwardHead(const Chunk& chunk, const GradientSink& sink);
  void BackwardLayers(const Batch& batch, const GradientSink& sink);
  float* WeightSink(const GradientSink& sink, absl::string_view tensor) const;
  LayerGradient GradientOf(int64_t layer, const GradientSink& sink) const;

  const BaseModel& model_;
  ThreadPool& pool_;
  const int64_t activation_budget_bytes_;

  // The layers with the bound adapter's factors, and which module of its spec each linear has.
  std::vector<Layer> layers_;
  Linear output_;
  bool bound_ = false;
  Digest bound_layout_;
  std::vector<std::array<int64_t, kLinearsPerLayer>> module_;  // -1: none
  int64_t output_module_ = -1;

  RopeTable rope_;
  std::vector<int64_t> branch_ends_;  // rows of each adapter: one has all
  LayerWorkspace workspace_;
  std::vector<LayerActivations> activations_;  // slot 0 also serves layers that are not kept
  std::vector<FloatBuffer> inputs_;            // of each layer, then the last output: [B*T, C]
  FloatBuffer gradient_;                       // with respect to a layer's output, then its input
  std::vector<int64_t> scored_rows_;
  std::vector<TokenId> scored_targets_;
  std::vector<float> scored_weights_;
  std::vector<double> nats_;
  FloatBuffer hidden_, normed_, inv_, logits_, d_normed_, d_hidden_, u_, du_;  // of a chunk
};

Transformer::Engine::Engine(const BaseModel& model, ThreadPool* pool,
                            int64_t activation_budget_bytes)
    : model_(model),
      pool_(*pool),
      activation_budget_bytes_(activation_budget_bytes),
      rope_(model.rope_frequencies()),
      workspace_(pool),
      activations_(model.layers().size()) {
  for (const LayerWeights& weights : model.layers()) {
    Layer layer;
    layer.attn_norm = weights.attn_norm;
    layer.ffn_norm = weights.ffn_norm;
    const WeightMatrix matrices[kLinearsPerLayer] = {
        weights.q, weights.k, weights.v, weights.o, weights.gate, weights.up, weights.down};
    for (size_t i = 0; i < kLinearsPerLayer; ++i) layer.linear[i].weight = matrices[i];
    layers_.push_back(layer);
  }
  output_.weight = model.output();
  module_.resize(layers_.size());
  inputs_.resize(layers_.size() + 1);
}

// Names are looked up once for each shape of adapter, pointers at each call.
void Transformer::Engine::BindAdapter(const LoraAdapter* adapter) {
  if (adapter == nullptr) {
    for (Layer& layer : layers_) {
      for (Linear& linear : layer.linear) linear.rank = 0;
    }
    output_.rank = 0;
    return;
  }
  const LoraSpec& spec = adapter->spec();
  if (!bound_ || bound_layout_ != spec.layout_hash()) {
    const absl::Status fits = model_.CheckAdapter(spec);
    FEDGE_CHECK(fits.ok(), fits.ToString());
    for (size_t i = 0; i < layers_.size(); ++i) {
      for (size_t j = 0; j < kLinearsPerLayer; ++j) {
        module_[i][j] =
            spec.Find(LinearTensorName(static_cast<int64_t>(i), static_cast<LinearIndex>(j)));
      }
    }
    output_module_ = spec.Find("output.weight");
    bound_ = true;
    bound_layout_ = spec.layout_hash();
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    for (size_t j = 0; j < kLinearsPerLayer; ++j) {
      BindLinear(*adapter, module_[i][j], layers_[i].linear[j]);
    }
  }
  BindLinear(*adapter, output_module_, output_);
}

LayerInput Transformer::Engine::Input(int64_t batch, int64_t length, int64_t past, const float* x) {
  LayerInput input;
  input.config = &model_.config();
  input.rope = &rope_;
  input.batch = batch;
  input.length = length;
  input.past = past;
  branch_ends_ = {input.rows()};
  input.branch_ends = branch_ends_;
  input.x = x;
  return input;
}

LossSum Transformer::Engine::Run(const Batch& batch, const GradientSink* sink,
                                 absl::Span<float> token_nats) {
  CheckBatch(batch, model_.config().vocab_size);
  std::fill(token_nats.begin(), token_nats.end(), 0.0f);
  GatherTargets(batch);
  if (scored_rows_.empty()) return LossSum();
  ForwardLayers(batch, sink != nullptr);
  if (sink != nullptr) {
    const int64_t size = batch.batch_size * batch.length * model_.config().embedding_length;
    std::fill_n(gradient_.Get(size), size, 0.0f);
  }
  const LossSum loss = RunHead(sink, token_nats);
  if (sink != nullptr) BackwardLayers(batch, *sink);
  return loss;
}

void Transformer::Engine::GatherTargets(const Batch& batch) {
  scored_rows_.clear();
  scored_targets_.clear();
  scored_weights_.clear();
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    if (batch.targets[i] == kNoToken) continue;
    scored_rows_.push_back(static_cast<int64_t>(i));
    scored_targets_.push_back(batch.targets[i]);
    scored_weights_.push_back(batch.weights.empty() ? 1.0f : batch.weights[i]);
  }
}

size_t Transformer::Engine::FirstKeptLayer(const Batch& batch) const {
  int64_t rank = 0;
  for (const Layer& layer : layers_) {
    for (const Linear& linear : layer.linear) rank = std::max(rank, linear.rank);
  }
  const int64_t bytes =
      LayerActivations::Bytes(model_.config(), batch.batch_size * batch.length, rank);
  const int64_t layers = model_.config().block_count;
  const int64_t kept = std::clamp<int64_t>(activation_budget_bytes_ / bytes, 1, layers);
  return static_cast<size_t>(layers - kept);
}

// For a gradient each layer's input stays in its own buffer, else two are used in turn.
void Transformer::Engine::ForwardLayers(const Batch& batch, bool for_gradient) {
  const int64_t size = batch.batch_size * batch.length * model_.config().embedding_length;
  rope_.EnsurePositions(batch.length);
  const size_t last = layers_.size();
  const size_t first_kept = for_gradient ? FirstKeptLayer(batch) : last;
  const auto buffer = [&](size_t i) -> FloatBuffer& {
    return inputs_[for_gradient || i == last ? i : i % 2];
  };
  const float* x = buffer(0).Get(size);
  EmbeddingForward(model_.token_embedding(), batch.tokens, buffer(0).data(), pool_);
  for (size_t i = 0; i < last; ++i) {
    float* const y = buffer(i + 1).Get(size);
    workspace_.Forward(layers_[i], Input(batch.batch_size, batch.length, 0, x), nullptr,
                       activations_[i >= first_kept ? i : 0], y);
    x = y;
  }
}

// Final norm, head and loss of the rows that have a target, a chunk at a time.
LossSum Transformer::Engine::RunHead(const GradientSink* sink, absl::Span<float> token_nats) {
  const int64_t vocabulary = model_.config().vocab_size;
  const int64_t scored = static_cast<int64_t>(scored_rows_.size());
  const int64_t chunk_rows = std::clamp(kLogitsPerChunk / vocabulary, kMinChunkRows, kMaxChunkRows);
  if (sink != nullptr) {
    for (float& weight : scored_weights_) weight *= sink->scale;
  }
  LossSum loss;
  loss.num_tokens = scored;
  for (int64_t begin = 0; begin < scored; begin += chunk_rows) {
    const Chunk chunk = {scored_rows_.data() + begin, scored_targets_.data() + begin,
                         scored_weights_.data() + begin, std::min(chunk_rows, scored - begin)};
    ForwardHead(chunk);
    nats_.resize(static_cast<size_t>(chunk.rows));
    if (sink == nullptr) {
      CrossEntropyForward(logits_.data(), chunk.targets, chunk.rows, vocabulary, nats_.data(),
                          pool_);
    } else {
      CrossEntropyForwardBackward(logits_.data(), chunk.targets, chunk.rows, vocabulary,
                                  chunk.weights, nats_.data(), pool_);
      BackwardHead(chunk, *sink);
    }
    for (int64_t i = 0; i < chunk.rows; ++i) {
      const double nats = nats_[static_cast<size_t>(i)];
      loss.nats += nats;
      if (token_nats.empty()) continue;
      token_nats[static_cast<size_t>(chunk.where[i])] = static_cast<float>(nats);
    }
  }
  return loss;
}

// The chunk's rows of the last output -> hidden_, normed_, logits_.
void Transformer::Engine::ForwardHead(const Chunk& chunk) {
  const ModelConfig& config = model_.config();
  const int64_t channels = config.embedding_length;
  const float* const x = inputs_.back().data();
  float* const hidden = hidden_.Get(chunk.rows * channels);
  for (int64_t i = 0; i < chunk.rows; ++i) {
    std::copy_n(x + chunk.where[i] * channels, channels, hidden + i * channels);
  }
  RmsNormForward(hidden, model_.output_norm(), chunk.rows, channels, config.rms_epsilon,
                 normed_.Get(chunk.rows * channels), inv_.Get(chunk.rows), pool_);
  const LinearForwardCall head = {&output_, u_.Get(chunk.rows * output_.rank),
                                  logits_.Get(chunk.rows * config.vocab_size)};
  LinearForward({head}, normed_.data(), {chunk.rows, {chunk.rows}}, pool_);
}

// logits_ holds their gradient; the rows' gradient goes to gradient_.
void Transformer::Engine::BackwardHead(const Chunk& chunk, const GradientSink& sink) {
  const int64_t channels = model_.config().embedding_length;
  const int64_t size = chunk.rows * channels;
  LinearGradient linear;
  float* norm = nullptr;
  if (sink.weights != nullptr) {
    linear.weight = WeightSink(sink, model_.tied_output() ? "token_embd.weight" : "output.weight");
    norm = WeightSink(sink, "output_norm.weight");
  } else {
    linear = AdapterGradient(sink, output_module_);
  }
  const LinearBackwardCall head = {&output_, &linear, u_.data(), logits_.data()};
  LinearBackward({head}, normed_.data(), {chunk.rows, {chunk.rows}},
                 du_.Get(LinearScratch({head}, chunk.rows)), Accumulate::kNo, d_normed_.Get(size),
                 pool_);
  float* const d_hidden = d_hidden_.Get(size);
  std::fill_n(d_hidden, size, 0.0f);
  RmsNormBackward(hidden_.data(), model_.output_norm(), inv_.data(), d_normed_.data(), chunk.rows,
                  channels, d_hidden, norm, pool_);
  for (int64_t i = 0; i < chunk.rows; ++i) {
    std::copy_n(d_hidden + i * channels, channels, gradient_.data() + chunk.where[i] * channels);
  }
}

float* Transformer::Engine::WeightSink(const GradientSink& sink, absl::string_view tensor) const {
  const GgufTensor* const found = model_.file().FindTensor(tensor);
  FEDGE_CHECK(found != nullptr, "no tensor ", tensor);
  return (*sink.weights)[static_cast<size_t>(found - model_.file().tensors().data())].data();
}

LayerGradient Transformer::Engine::GradientOf(int64_t layer, const GradientSink& sink) const {
  LayerGradient gradient;
  for (size_t j = 0; j < kLinearsPerLayer; ++j) {
    if (sink.weights != nullptr) {
      gradient.linear[j].weight =
          WeightSink(sink, LinearTensorName(layer, static_cast<LinearIndex>(j)));
    } else {
      gradient.linear[j] = AdapterGradient(sink, module_[static_cast<size_t>(layer)][j]);
    }
  }
  if (sink.weights != nullptr) {
    gradient.attn_norm = WeightSink(sink, absl::StrCat("blk.", layer, ".attn_norm.weight"));
    gradient.ffn_norm = WeightSink(sink, absl::StrCat("blk.", layer, ".ffn_norm.weight"));
  }
  return gradient;
}

// From the top down; a layer whose activations were not kept is computed again from its input.
void Transformer::Engine::BackwardLayers(const Batch& batch, const GradientSink& sink) {
  const bool weights = sink.weights != nullptr;
  const size_t first_kept = FirstKeptLayer(batch);
  for (size_t i = layers_.size(); i-- > 0;) {
    const LayerInput input = Input(batch.batch_size, batch.length, 0, inputs_[i].data());
    LayerActivations& kept = activations_[i >= first_kept ? i : 0];
    if (i < first_kept) workspace_.Forward(layers_[i], input, nullptr, kept, nullptr);
    // Nothing below the first layer is trained when the embedding is frozen.
    workspace_.Backward(layers_[i], input, GradientOf(static_cast<int64_t>(i), sink),
                        weights || i > 0, kept, gradient_.data());
  }
  if (!weights) return;
  EmbeddingBackward(batch.tokens, model_.config().embedding_length, gradient_.data(),
                    WeightSink(sink, "token_embd.weight"), pool_);
}

std::vector<float> Transformer::Engine::Decode(absl::Span<const TokenId> tokens, int64_t past,
                                               absl::Span<const LayerCache> caches) {
  const ModelConfig& config = model_.config();
  const int64_t length = static_cast<int64_t>(tokens.size());
  const int64_t size = length * config.embedding_length;
  rope_.EnsurePositions(past + length);
  float* x = inputs_[0].Get(size);
  float* y = inputs_.back().Get(size);
  EmbeddingForward(model_.token_embedding(), tokens, x, pool_);
  for (size_t i = 0; i < layers_.size(); ++i) {
    workspace_.Forward(layers_[i], Input(1, length, past, x), &caches[i], activations_[0], y);
    std::swap(x, y);
  }
  const float* const last = x + (length - 1) * config.embedding_length;
  RmsNormForward(last, model_.output_norm(), 1, config.embedding_length, config.rms_epsilon,
                 normed_.Get(config.embedding_length), inv_.Get(1), pool_);
  std::vector<float> logits(static_cast<size_t>(config.vocab_size));
  const LinearForwardCall head = {&output_, u_.Get(output_.rank), logits.data()};
  LinearForward({head}, normed_.data(), {1, {1}}, pool_);
  return logits;
}

Transformer::Transformer(std::shared_ptr<const BaseModel> model, ThreadPool* pool,
                         int64_t activation_budget_bytes)
    : model_(std::move(model)) {
  FEDGE_CHECK(model_ != nullptr && pool != nullptr);
  engine_ = std::make_unique<Engine>(*model_, pool, activation_budget_bytes);
}

Transformer::~Transformer() = default;

LossSum Transformer::Loss(const Batch& batch, const LoraAdapter* adapter,
                          absl::Span<float> token_nats) {
  FEDGE_CHECK(token_nats.empty() || token_nats.size() == batch.tokens.size());
  engine_->BindAdapter(adapter);
  return engine_->Run(batch, nullptr, token_nats);
}

LossSum Transformer::LossAndGradient(const Batch& batch, const LoraAdapter& adapter,
                                     float grad_scale, absl::Span<float> gradient) {
  FEDGE_CHECK(gradient.size() == adapter.values().size(), "gradient of ", gradient.size(),
              " values for an adapter of ", adapter.values().size());
  engine_->BindAdapter(&adapter);
  GradientSink sink;
  sink.scale = grad_scale;
  sink.spec = &adapter.spec();
  sink.adapter = gradient.data();
  return engine_->Run(batch, &sink, {});
}

LossSum Transformer::LossAndWeightGradients(const Batch& batch, float grad_scale,
                                            WeightGradients& gradients) {
  const std::vector<GgufTensor>& tensors = model_->file().tensors();
  gradients.resize(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].name == "rope_freqs.weight") continue;
    FEDGE_CHECK(tensors[i].type == DType::kF32, "tensor ", tensors[i].name, " is ",
                DTypeName(tensors[i].type), ", pre-training needs F32");
    const size_t size = static_cast<size_t>(tensors[i].num_elements());
    if (gradients[i].empty()) gradients[i].resize(size);
    FEDGE_CHECK(gradients[i].size() == size, "gradient of ", tensors[i].name);
  }
  engine_->BindAdapter(nullptr);
  GradientSink sink;
  sink.scale = grad_scale;
  sink.weights = &gradients;
  return engine_->Run(batch, &sink, {});
}

KvCache::KvCache(const ModelConfig& config, int64_t capacity) : capacity_(capacity) {
  FEDGE_CHECK(capacity >= 0, "capacity ", capacity);
  const size_t size = static_cast<size_t>(capacity * config.head_count_kv * config.head_dim);
  keys_.assign(static_cast<size_t>(config.block_count), std::vector<float>(size));
  values_ = keys_;
}

absl::StatusOr<std::vector<float>> Transformer::Decode(absl::Span<const TokenId> tokens,
                                                       const LoraAdapter* adapter, KvCache& cache) {
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
  std::vector<LayerCache> caches;
  for (size_t i = 0; i < cache.keys_.size(); ++i) {
    caches.push_back({cache.keys_[i].data(), cache.values_[i].data()});
  }
  engine_->BindAdapter(adapter);
  std::vector<float> logits = engine_->Decode(tokens, cache.size_, caches);
  cache.size_ += length;
  return logits;
}

}  // namespace fedge
