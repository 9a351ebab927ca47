#include "common/model/layer.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace fedge {
namespace {

HeadShape HeadsOf(const LayerInput& input, int64_t heads, int64_t stride) {
  return {input.rows(), heads, input.config->head_dim, stride};
}

AttentionShape AttentionShapeOf(const Layer& layer, const LayerInput& input) {
  const ModelConfig& config = *input.config;
  AttentionShape shape;
  shape.batch = input.batch;
  shape.length = input.length;
  shape.past = input.past;
  shape.heads = config.head_count;
  shape.kv_heads = config.head_count_kv;
  shape.head_dim = config.head_dim;
  shape.scale = config.attention_scale;
  shape.window = layer.window;
  return shape;
}

ConstRows Const(const Rows& rows) { return {rows.data, rows.stride}; }

}  // namespace

int64_t LayerActivations::Bytes(const ModelConfig& config, int64_t rows, int64_t rank) {
  constexpr int64_t kMostLinears = 7;  // none of them fused
  const int64_t heads = config.head_count + config.head_count_kv;
  int64_t row = 3 * config.embedding_length + 3 * config.feed_forward_length +
                2 * heads * config.head_dim + config.head_count + 2 + kMostLinears * rank;
  if (config.family->qk_norm) row += heads * (config.head_dim + 1);
  if (config.family->post_norms) row += 2 * (config.embedding_length + 1);
  return rows * row * static_cast<int64_t>(sizeof(float));
}

void LayerActivations::Reserve(const Layer& layer, const LayerInput& input) {
  const ModelConfig& config = *input.config;
  const int64_t rows = input.rows();
  const int64_t q_size = rows * config.head_count * config.head_dim;
  const int64_t kv_size = rows * config.head_count_kv * config.head_dim;
  for (FloatBuffer* buffer : {&normed1, &h, &normed2}) buffer->Get(rows * config.embedding_length);
  for (FloatBuffer* buffer : {&inv1, &inv2}) buffer->Get(rows);
  qkv.Get(q_size + 2 * kv_size);
  attended.Get(q_size);
  lse.Get(rows * config.head_count);
  gate_up.Get(2 * rows * config.feed_forward_length);
  activated.Get(rows * config.feed_forward_length);
  if (layer.norm[kQNorm] != nullptr) {
    q.Get(q_size);
    k.Get(kv_size);
    inv_q.Get(rows * config.head_count);
    inv_k.Get(rows * config.head_count_kv);
  }
  if (layer.norm[kPostAttnNorm] != nullptr) {
    o_out.Get(rows * config.embedding_length);
    inv_o.Get(rows);
  }
  if (layer.norm[kPostFfnNorm] != nullptr) {
    down_out.Get(rows * config.embedding_length);
    inv_down.Get(rows);
  }
  for (size_t i = 0; i < kLinearsPerLayer; ++i) u[i].Get(rows * layer.linear[i].rank);
}

std::array<int64_t, 5> LayerWorkspace::ScratchSizes(const ModelConfig& config, int64_t rows) {
  const int64_t q_width = config.head_count * config.head_dim;
  const int64_t kv_width = config.head_count_kv * config.head_dim;
  std::array<int64_t, 5> sizes = {rows * config.feed_forward_length, rows * config.embedding_length,
                                  rows * q_width, rows * (q_width + 2 * kv_width),
                                  config.family->post_norms ? rows * config.embedding_length : 0};
  constexpr int64_t kLine = 16;  // floats of a cache line
  for (int64_t& size : sizes) size = (size + kLine - 1) / kLine * kLine;
  return sizes;
}

int64_t LayerWorkspace::Bytes(const ModelConfig& config, int64_t rows) {
  int64_t floats = 0;
  for (const int64_t size : ScratchSizes(config, rows)) floats += size;
  return floats * static_cast<int64_t>(sizeof(float));
}

struct LayerWorkspace::ForwardCall {
  const Layer& layer;
  const LayerInput& input;
  LayerActivations& kept;
};

struct LayerWorkspace::Differentiation {
  const Layer& layer;
  const LayerInput& input;
  const LayerGradient& gradient;
  LayerActivations& kept;
};

struct LayerWorkspace::Output {
  LinearIndex index;
  float* y;
};

struct LayerWorkspace::QkvRows {
  Rows q, k, v;
  std::vector<Output> outputs;
};

struct LayerWorkspace::GateRows {
  float *gate, *up;
  int64_t stride;
  std::vector<Output> outputs;
};

// Of one buffer: q, k and v one after the other, or side by side in each row when one linear
// computes them.
LayerWorkspace::QkvRows LayerWorkspace::SplitQkv(const Layer& layer, const LayerInput& input,
                                                 float* data) {
  const ModelConfig& config = *input.config;
  const int64_t q_width = config.head_count * config.head_dim;
  const int64_t kv_width = config.head_count_kv * config.head_dim;
  if (layer.Has(kQkv)) {
    const int64_t width = q_width + 2 * kv_width;
    return {
        {data, width}, {data + q_width, width}, {data + q_width + kv_width, width}, {{kQkv, data}}};
  }
  float* const k = data + input.rows() * q_width;
  float* const v = k + input.rows() * kv_width;
  return {{data, q_width}, {k, kv_width}, {v, kv_width}, {{kQ, data}, {kK, k}, {kV, v}}};
}

LayerWorkspace::GateRows LayerWorkspace::SplitGate(const Layer& layer, const LayerInput& input,
                                                   float* data) {
  const int64_t hidden = input.config->feed_forward_length;
  if (layer.Has(kGateUp)) return {data, data + hidden, 2 * hidden, {{kGateUp, data}}};
  float* const up = data + input.rows() * hidden;
  return {data, up, hidden, {{kGate, data}, {kUp, up}}};
}

BranchDropout LayerWorkspace::DropoutOf(const LayerInput& input) {
  return {input.dropout, &dropped_, &dropped_gradient_, &dropped_du_};
}

void LayerWorkspace::Apply(const ForwardCall& call, absl::Span<const Output> outputs,
                           const FloatBuffer& x) {
  std::vector<LinearForwardCall> calls;
  for (const Output& output : outputs) {
    calls.push_back({&call.layer.linear[output.index], call.kept.u[output.index].data(), output.y});
  }
  const BranchDropout dropout = DropoutOf(call.input);
  LinearForward(calls, x.data(), call.input.linear_rows(), *pool_,
                dropout.branches.empty() ? nullptr : &dropout);
}

bool LayerWorkspace::Forward(const Layer& layer, const LayerInput& input, KvLayer* cache,
                             LayerActivations& kept, float* y) {
  kept.Reserve(layer, input);
  const ForwardCall call = {layer, input, kept};
  if (!AttentionPartForward(call, cache)) return false;
  FeedForward(call, y);
  return true;
}

// h = x + post_norm(o(attention(rope(norm(q(n))), rope(norm(k(n))), v(n)))), n = norm(x)
bool LayerWorkspace::AttentionPartForward(const ForwardCall& call, KvLayer* cache) {
  const Layer& layer = call.layer;
  const LayerInput& input = call.input;
  const ModelConfig& config = *input.config;
  LayerActivations& kept = call.kept;
  const int64_t rows = input.rows();
  const int64_t channels = config.embedding_length;
  const int64_t kv_width = config.head_count_kv * config.head_dim;
  RmsNormForward(input.x, layer.norm[kAttnNorm], rows, channels, config.rms_epsilon,
                 kept.normed1.data(), kept.inv1.data(), *pool_);
  const QkvRows qkv = SplitQkv(layer, input, kept.qkv.data());
  Apply(call, qkv.outputs, kept.normed1);
  Rows q = qkv.q, k = qkv.k;
  if (layer.norm[kQNorm] != nullptr) {
    HeadNormForward(HeadsOf(input, config.head_count, q.stride), q.data, layer.norm[kQNorm],
                    config.rms_epsilon, kept.q.data(), kept.inv_q.data(), *pool_);
    HeadNormForward(HeadsOf(input, config.head_count_kv, k.stride), k.data, layer.norm[kKNorm],
                    config.rms_epsilon, kept.k.data(), kept.inv_k.data(), *pool_);
    q = {kept.q.data(), config.head_count * config.head_dim};
    k = {kept.k.data(), kv_width};
  }
  const RopePositions positions = {input.length, input.past};
  RopeForward(*input.rope, positions, HeadsOf(input, config.head_count, q.stride), q.data, *pool_);
  RopeForward(*input.rope, positions, HeadsOf(input, config.head_count_kv, k.stride), k.data,
              *pool_);
  const AttentionShape shape = AttentionShapeOf(layer, input);
  const ConstRows keys = Const(k), values = Const(qkv.v);
  if (cache == nullptr) {
    AttentionForward(shape, Const(q), keys, values, kept.attended.data(), kept.lse.data(),
                     attention_scratch_, *pool_);
  } else {
    CachedAttention(shape, Const(q), keys, values, *cache, kept.attended.data(), kept.lse.data(),
                    attention_scratch_, *pool_);
    if (!cache->Write(input.past, input.length, keys, values, *pool_)) return false;
  }
  if (layer.norm[kPostAttnNorm] != nullptr) {
    Apply(call, {{kO, kept.o_out.data()}}, kept.attended);
    RmsNormForward(kept.o_out.data(), layer.norm[kPostAttnNorm], rows, channels, config.rms_epsilon,
                   kept.h.data(), kept.inv_o.data(), *pool_);
  } else {
    Apply(call, {{kO, kept.h.data()}}, kept.attended);
  }
  AddForward(input.x, rows * channels, kept.h.data(), *pool_);
  return true;
}

// y = h + post_norm(down(gate_function(gate(n)) * up(n))), n = norm(h)
void LayerWorkspace::FeedForward(const ForwardCall& call, float* y) {
  const Layer& layer = call.layer;
  const ModelConfig& config = *call.input.config;
  LayerActivations& kept = call.kept;
  const int64_t rows = call.input.rows();
  const int64_t channels = config.embedding_length;
  RmsNormForward(kept.h.data(), layer.norm[kFfnNorm], rows, channels, config.rms_epsilon,
                 kept.normed2.data(), kept.inv2.data(), *pool_);
  const GateRows gate = SplitGate(layer, call.input, kept.gate_up.data());
  Apply(call, gate.outputs, kept.normed2);
  GateForward({config.family->gate, rows, config.feed_forward_length, gate.stride}, gate.gate,
              gate.up, kept.activated.data(), *pool_);
  if (layer.norm[kPostFfnNorm] != nullptr) {
    Apply(call, {{kDown, kept.down_out.data()}}, kept.activated);
    float* const normed = y != nullptr ? y : between_.Get(rows * channels);
    RmsNormForward(kept.down_out.data(), layer.norm[kPostFfnNorm], rows, channels,
                   config.rms_epsilon, normed, kept.inv_down.data(), *pool_);
  } else {
    Apply(call, {{kDown, y}}, kept.activated);
  }
  if (y != nullptr) AddForward(kept.h.data(), rows * channels, y, *pool_);
}

// The gradients of linears that read the same x; dx is overwritten, unless null.
void LayerWorkspace::Differentiate(const Differentiation& call, absl::Span<const Output> outputs,
                                   const float* x, float* dx) {
  std::vector<LinearBackwardCall> calls;
  for (const Output& output : outputs) {
    calls.push_back({&call.layer.linear[output.index], &call.gradient.linear[output.index],
                     call.kept.u[output.index].data(), output.y});
  }
  const BranchDropout dropout = DropoutOf(call.input);
  LinearBackward(calls, x, call.input.linear_rows(), Accumulate::kNo, dx, *pool_,
                 dropout.branches.empty() ? nullptr : &dropout);
}

void LayerWorkspace::Backward(const Layer& layer, const LayerInput& input,
                              const LayerGradient& gradient, bool want_dx, LayerActivations& kept,
                              float* dy) {
  const std::array<int64_t, 5> sizes = ScratchSizes(*input.config, input.rows());
  float* next = between_.Get(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}));
  float** const pieces[] = {&scratch_.d_hidden, &scratch_.d_normed, &scratch_.d_attended,
                            &scratch_.d_qkv, &scratch_.d_branch};
  for (size_t i = 0; i < sizes.size(); ++i) {
    *pieces[i] = next;
    next += sizes[i];
  }
  const Differentiation call = {layer, input, gradient, kept};
  FeedForwardBackward(call, dy);
  AttentionPartBackward(call, want_dx, dy);
}

// The gradient before a norm of a part's output x: dy itself when there is none.
float* LayerWorkspace::PostNormBackward(const Differentiation& call, NormIndex norm,
                                        const FloatBuffer& x, const FloatBuffer& inv, float* dy) {
  if (call.layer.norm[norm] == nullptr) return dy;
  const int64_t rows = call.input.rows();
  const int64_t channels = call.input.config->embedding_length;
  float* const d_branch = scratch_.d_branch;
  std::fill_n(d_branch, rows * channels, 0.0f);
  RmsNormBackward(x.data(), call.layer.norm[norm], inv.data(), dy, rows, channels, d_branch,
                  call.gradient.norm[norm], *pool_);
  return d_branch;
}

// dy becomes dh.
void LayerWorkspace::FeedForwardBackward(const Differentiation& call, float* dy) {
  const LayerActivations& kept = call.kept;
  const ModelConfig& config = *call.input.config;
  const int64_t rows = call.input.rows();
  const int64_t channels = config.embedding_length;
  float* const d_hidden = scratch_.d_hidden;
  float* const d_normed = scratch_.d_normed;
  float* const d_down = PostNormBackward(call, kPostFfnNorm, kept.down_out, kept.inv_down, dy);
  Differentiate(call, {{kDown, d_down}}, kept.activated.data(), d_hidden);
  const GateRows gate = SplitGate(call.layer, call.input, kept.gate_up.data());
  GateBackward({config.family->gate, rows, config.feed_forward_length, gate.stride}, gate.gate,
               gate.up, d_hidden, *pool_);
  Differentiate(call, gate.outputs, kept.normed2.data(), d_normed);
  RmsNormBackward(kept.h.data(), call.layer.norm[kFfnNorm], kept.inv2.data(), d_normed, rows,
                  channels, dy, call.gradient.norm[kFfnNorm], *pool_);
}

// dh becomes dx.
void LayerWorkspace::AttentionPartBackward(const Differentiation& call, bool want_dx, float* dh) {
  const Layer& layer = call.layer;
  const LayerInput& input = call.input;
  const ModelConfig& config = *input.config;
  LayerActivations& kept = call.kept;
  const int64_t rows = input.rows();
  const int64_t q_width = config.head_count * config.head_dim;
  const int64_t kv_width = config.head_count_kv * config.head_dim;
  float* const d_attended = scratch_.d_attended;
  float* const d_o = PostNormBackward(call, kPostAttnNorm, kept.o_out, kept.inv_o, dh);
  Differentiate(call, {{kO, d_o}}, kept.attended.data(), d_attended);
  const bool normed = layer.norm[kQNorm] != nullptr;
  const QkvRows raw = SplitQkv(layer, input, kept.qkv.data());
  const QkvRows d = SplitQkv(layer, input, scratch_.d_qkv);
  const ConstRows q = normed ? ConstRows{kept.q.data(), q_width} : Const(raw.q);
  const ConstRows k = normed ? ConstRows{kept.k.data(), kv_width} : Const(raw.k);
  AttentionBackward(AttentionShapeOf(layer, input),
                    {q, k, Const(raw.v), kept.attended.data(), kept.lse.data()}, d_attended,
                    {d.q, d.k, d.v}, attention_scratch_, *pool_);
  const HeadShape q_heads = HeadsOf(input, config.head_count, d.q.stride);
  const HeadShape k_heads = HeadsOf(input, config.head_count_kv, d.k.stride);
  const RopePositions positions = {input.length, input.past};
  RopeBackward(*input.rope, positions, q_heads, d.q.data, *pool_);
  RopeBackward(*input.rope, positions, k_heads, d.k.data, *pool_);
  if (normed) {
    HeadNormBackward(q_heads, raw.q.data, layer.norm[kQNorm], kept.inv_q.data(), d.q.data,
                     call.gradient.norm[kQNorm], *pool_);
    HeadNormBackward(k_heads, raw.k.data, layer.norm[kKNorm], kept.inv_k.data(), d.k.data,
                     call.gradient.norm[kKNorm], *pool_);
  }
  float* const d_normed = want_dx ? scratch_.d_normed : nullptr;
  Differentiate(call, d.outputs, kept.normed1.data(), d_normed);
  if (!want_dx) return;
  RmsNormBackward(input.x, layer.norm[kAttnNorm], kept.inv1.data(), d_normed, rows,
                  config.embedding_length, dh, call.gradient.norm[kAttnNorm], *pool_);
}

}  // namespace fedge
