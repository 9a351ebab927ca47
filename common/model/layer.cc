#include "common/model/layer.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <vector>

#include "absl/strings/str_cat.h"

namespace fedge {

std::string LinearTensorName(int64_t layer, LinearIndex index) {
  constexpr const char* kNames[kLinearsPerLayer] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                    "ffn_gate", "ffn_up", "ffn_down"};
  return absl::StrCat("blk.", layer, ".", kNames[index], ".weight");
}

namespace {

RopeShape RopeShapeOf(const LayerInput& input, int64_t heads) {
  return {input.batch, input.length, input.past, heads, input.config->head_dim};
}

AttentionShape AttentionShapeOf(const LayerInput& input) {
  const ModelConfig& config = *input.config;
  return {input.batch,
          input.length,
          input.past,
          config.head_count,
          config.head_count_kv,
          config.head_dim,
          1.0f / std::sqrt(static_cast<float>(config.head_dim))};
}

}  // namespace

int64_t LayerActivations::Bytes(const ModelConfig& config, int64_t rows, int64_t rank) {
  const int64_t heads = 2 * config.head_count + 2 * config.head_count_kv;
  const int64_t row = 3 * config.embedding_length + 3 * config.feed_forward_length +
                      heads * config.head_dim + config.head_count + 2 + kLinearsPerLayer * rank;
  return rows * row * static_cast<int64_t>(sizeof(float));
}

void LayerActivations::Reserve(const Layer& layer, const LayerInput& input) {
  const ModelConfig& config = *input.config;
  const int64_t rows = input.rows();
  for (FloatBuffer* buffer : {&normed1, &h, &normed2}) buffer->Get(rows * config.embedding_length);
  for (FloatBuffer* buffer : {&gate, &up, &activated}) {
    buffer->Get(rows * config.feed_forward_length);
  }
  for (FloatBuffer* buffer : {&inv1, &inv2}) buffer->Get(rows);
  for (FloatBuffer* buffer : {&q, &attended}) {
    buffer->Get(rows * config.head_count * config.head_dim);
  }
  for (FloatBuffer* buffer : {&k, &v}) buffer->Get(rows * config.head_count_kv * config.head_dim);
  lse.Get(rows * config.head_count);
  for (size_t i = 0; i < kLinearsPerLayer; ++i) u[i].Get(rows * layer.linear[i].rank);
}

void LayerWorkspace::Forward(const Layer& layer, const LayerInput& input, const LayerCache* cache,
                             LayerActivations& kept, float* y) {
  const ModelConfig& config = *input.config;
  const int64_t rows = input.rows();
  const int64_t channels = config.embedding_length;
  kept.Reserve(layer, input);
  const auto call = [&](LinearIndex index, float* out) {
    return LinearForwardCall{&layer.linear[index], kept.u[index].data(), out};
  };
  const auto apply = [&](std::initializer_list<LinearForwardCall> calls, const FloatBuffer& x) {
    LinearForward(calls, x.data(), input.linear_rows(), *pool_);
  };
  RmsNormForward(input.x, layer.attn_norm, rows, channels, config.rms_epsilon, kept.normed1.data(),
                 kept.inv1.data(), *pool_);
  apply({call(kQ, kept.q.data()), call(kK, kept.k.data()), call(kV, kept.v.data())}, kept.normed1);
  RopeForward(*input.rope, RopeShapeOf(input, config.head_count), kept.q.data(), *pool_);
  RopeForward(*input.rope, RopeShapeOf(input, config.head_count_kv), kept.k.data(), *pool_);
  const float* keys = kept.k.data();
  const float* values = kept.v.data();
  if (cache != nullptr) {
    const int64_t width = config.head_count_kv * config.head_dim;
    std::copy_n(keys, rows * width, cache->keys + input.past * width);
    std::copy_n(values, rows * width, cache->values + input.past * width);
    keys = cache->keys;
    values = cache->values;
  }
  AttentionForward(AttentionShapeOf(input), kept.q.data(), keys, values, kept.attended.data(),
                   kept.lse.data(), attention_scratch_, *pool_);
  apply({call(kO, kept.h.data())}, kept.attended);
  AddForward(input.x, rows * channels, kept.h.data(), *pool_);

  RmsNormForward(kept.h.data(), layer.ffn_norm, rows, channels, config.rms_epsilon,
                 kept.normed2.data(), kept.inv2.data(), *pool_);
  apply({call(kGate, kept.gate.data()), call(kUp, kept.up.data())}, kept.normed2);
  SwiGluForward(kept.gate.data(), kept.up.data(), rows, config.feed_forward_length,
                kept.activated.data(), *pool_);
  apply({call(kDown, y)}, kept.activated);
  if (y != nullptr) AddForward(kept.h.data(), rows * channels, y, *pool_);
}

struct LayerWorkspace::Differentiation {
  const Layer& layer;
  const LayerInput& input;
  const LayerGradient& gradient;
  LayerActivations& kept;
};

// The gradients of linears that read the same x; dx is overwritten, unless null.
void LayerWorkspace::Differentiate(const Differentiation& call,
                                   absl::Span<const OutputGradient> outputs, const float* x,
                                   float* dx) {
  std::vector<LinearBackwardCall> calls;
  for (const OutputGradient& output : outputs) {
    calls.push_back({&call.layer.linear[output.index], &call.gradient.linear[output.index],
                     call.kept.u[output.index].data(), output.dy});
  }
  LinearBackward(calls, x, call.input.linear_rows(),
                 du_.Get(LinearScratch(calls, call.input.rows())), Accumulate::kNo, dx, *pool_);
}

void LayerWorkspace::Backward(const Layer& layer, const LayerInput& input,
                              const LayerGradient& gradient, bool want_dx, LayerActivations& kept,
                              float* dy) {
  const Differentiation call = {layer, input, gradient, kept};
  FeedForwardBackward(call, dy);
  AttentionPartBackward(call, want_dx, dy);
}

// y = h + down(silu(gate(n)) * up(n)), n = norm(h): dy becomes dh.
void LayerWorkspace::FeedForwardBackward(const Differentiation& call, float* dy) {
  const LayerActivations& kept = call.kept;
  const int64_t rows = call.input.rows();
  const int64_t channels = call.input.config->embedding_length;
  const int64_t hidden = call.input.config->feed_forward_length;
  float* const d_hidden = d_hidden_.Get(rows * hidden);
  float* const d_normed = d_normed_.Get(rows * channels);
  Differentiate(call, {{kDown, dy}}, kept.activated.data(), d_hidden);
  SwiGluBackward(kept.gate.data(), kept.up.data(), rows, hidden, d_hidden, *pool_);
  Differentiate(call, {{kGate, kept.gate.data()}, {kUp, d_hidden}}, kept.normed2.data(), d_normed);
  RmsNormBackward(kept.h.data(), call.layer.ffn_norm, kept.inv2.data(), d_normed, rows, channels,
                  dy, call.gradient.ffn_norm, *pool_);
}

// h = x + o(attention(rope(q(n)), rope(k(n)), v(n))), n = norm(x): dh becomes dx.
void LayerWorkspace::AttentionPartBackward(const Differentiation& call, bool want_dx, float* dh) {
  const LayerActivations& kept = call.kept;
  const LayerInput& input = call.input;
  const ModelConfig& config = *input.config;
  const int64_t rows = input.rows();
  const int64_t kv_size = rows * config.head_count_kv * config.head_dim;
  float* const d_attended = d_attended_.Get(rows * config.head_count * config.head_dim);
  float* const dq = dq_.Get(rows * config.head_count * config.head_dim);
  float* const dk = dk_.Get(kv_size);
  float* const dv = dv_.Get(kv_size);
  Differentiate(call, {{kO, dh}}, kept.attended.data(), d_attended);
  AttentionBackward(
      AttentionShapeOf(input),
      {kept.q.data(), kept.k.data(), kept.v.data(), kept.attended.data(), kept.lse.data()},
      d_attended, dq, dk, dv, attention_scratch_, *pool_);
  RopeBackward(*input.rope, RopeShapeOf(input, config.head_count), dq, *pool_);
  RopeBackward(*input.rope, RopeShapeOf(input, config.head_count_kv), dk, *pool_);
  float* const d_normed = want_dx ? d_normed_.data() : nullptr;  // as in FeedForwardBackward
  Differentiate(call, {{kQ, dq}, {kK, dk}, {kV, dv}}, kept.normed1.data(), d_normed);
  if (!want_dx) return;
  RmsNormBackward(input.x, call.layer.attn_norm, kept.inv1.data(), d_normed, rows,
                  config.embedding_length, dh, call.gradient.attn_norm, *pool_);
}

}  // namespace fedge
