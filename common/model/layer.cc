#include "common/model/layer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {

std::string LinearTensorName(int64_t layer, LinearIndex index) {
  constexpr const char* kNames[kLinearsPerLayer] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                    "ffn_gate", "ffn_up", "ffn_down"};
  return absl::StrCat("blk.", layer, ".", kNames[index], ".weight");
}

RopeShape LayerWorkspace::Rope(const LayerInput& input, int64_t heads) const {
  return {input.batch, input.length, input.past, heads, input.config->head_dim};
}

AttentionShape LayerWorkspace::Attention(const LayerInput& input) const {
  const ModelConfig& config = *input.config;
  return {input.batch,
          input.length,
          input.past,
          config.head_count,
          config.head_count_kv,
          config.head_dim,
          1.0f / std::sqrt(static_cast<float>(config.head_dim))};
}

void LayerWorkspace::Reserve(const Layer& layer, const LayerInput& input) {
  const ModelConfig& config = *input.config;
  rows_ = input.rows();
  const int64_t channels = rows_ * config.embedding_length;
  const int64_t hidden = rows_ * config.feed_forward_length;
  const int64_t q_size = rows_ * config.head_count * config.head_dim;
  const int64_t kv_size = rows_ * config.head_count_kv * config.head_dim;
  for (FloatBuffer* buffer : {&normed1_, &h_, &normed2_}) buffer->Get(channels);
  for (FloatBuffer* buffer : {&gate_, &up_, &activated_}) buffer->Get(hidden);
  for (FloatBuffer* buffer : {&inv1_, &inv2_}) buffer->Get(rows_);
  for (FloatBuffer* buffer : {&q_, &attended_}) buffer->Get(q_size);
  for (FloatBuffer* buffer : {&k_, &v_}) buffer->Get(kv_size);
  lse_.Get(rows_ * config.head_count);
  for (size_t i = 0; i < kLinearsPerLayer; ++i) u_[i].Get(rows_ * layer.linear[i].rank);
}

void LayerWorkspace::ReserveGradients(const LayerInput& input) {
  const ModelConfig& config = *input.config;
  d_hidden_.Get(rows_ * config.feed_forward_length);
  d_normed_.Get(rows_ * config.embedding_length);
  for (FloatBuffer* buffer : {&d_attended_, &dq_}) {
    buffer->Get(rows_ * config.head_count * config.head_dim);
  }
  for (FloatBuffer* buffer : {&dk_, &dv_}) {
    buffer->Get(rows_ * config.head_count_kv * config.head_dim);
  }
}

void LayerWorkspace::Apply(const Layer& layer, LinearIndex index, const float* x, float* y) {
  LinearForward(layer.linear[index], x, rows_, u_[index].data(), y, *pool_);
}

void LayerWorkspace::Forward(const Layer& layer, const LayerInput& input, const LayerCache* cache,
                             float* y) {
  const ModelConfig& config = *input.config;
  const int64_t channels = config.embedding_length;
  Reserve(layer, input);
  RmsNormForward(input.x, layer.attn_norm, rows_, channels, config.rms_epsilon, normed1_.data(),
                 inv1_.data(), *pool_);
  Apply(layer, kQ, normed1_.data(), q_.data());
  Apply(layer, kK, normed1_.data(), k_.data());
  Apply(layer, kV, normed1_.data(), v_.data());
  RopeForward(*input.rope, Rope(input, config.head_count), q_.data(), *pool_);
  RopeForward(*input.rope, Rope(input, config.head_count_kv), k_.data(), *pool_);
  const float* keys = k_.data();
  const float* values = v_.data();
  if (cache != nullptr) {
    const int64_t width = config.head_count_kv * config.head_dim;
    std::copy_n(keys, rows_ * width, cache->keys + input.past * width);
    std::copy_n(values, rows_ * width, cache->values + input.past * width);
    keys = cache->keys;
    values = cache->values;
  }
  AttentionForward(Attention(input), q_.data(), keys, values, attended_.data(), lse_.data(),
                   attention_scratch_, *pool_);
  Apply(layer, kO, attended_.data(), h_.data());
  AddForward(input.x, rows_ * channels, h_.data(), *pool_);

  RmsNormForward(h_.data(), layer.ffn_norm, rows_, channels, config.rms_epsilon, normed2_.data(),
                 inv2_.data(), *pool_);
  Apply(layer, kGate, normed2_.data(), gate_.data());
  Apply(layer, kUp, normed2_.data(), up_.data());
  SwiGluForward(gate_.data(), up_.data(), rows_, config.feed_forward_length, activated_.data(),
                *pool_);
  Apply(layer, kDown, activated_.data(), y);
  if (y != nullptr) AddForward(h_.data(), rows_ * channels, y, *pool_);
}

void LayerWorkspace::Differentiate(const Layer& layer, const LayerGradient& gradient,
                                   LinearIndex index, const float* x, const float* dy,
                                   Accumulate accumulate, float* dx) {
  const Linear& linear = layer.linear[index];
  LinearBackward(linear, gradient.linear[index], x, u_[index].data(), dy, rows_,
                 du_.Get(rows_ * linear.rank), accumulate, dx, *pool_);
}

void LayerWorkspace::Backward(const Layer& layer, const LayerInput& input,
                              const LayerGradient& gradient, bool want_dx, float* dy) {
  FEDGE_CHECK(rows_ == input.rows(), "Backward without its Forward");
  ReserveGradients(input);
  FeedForwardBackward(layer, input, gradient, dy);
  AttentionPartBackward(layer, input, gradient, want_dx, dy);
}

// y = h + down(silu(gate(n)) * up(n)), n = norm(h): dy becomes dh.
void LayerWorkspace::FeedForwardBackward(const Layer& layer, const LayerInput& input,
                                         const LayerGradient& gradient, float* dy) {
  const int64_t hidden = input.config->feed_forward_length;
  Differentiate(layer, gradient, kDown, activated_.data(), dy, Accumulate::kNo, d_hidden_.data());
  SwiGluBackward(gate_.data(), up_.data(), rows_, hidden, d_hidden_.data(), *pool_);
  Differentiate(layer, gradient, kGate, normed2_.data(), gate_.data(), Accumulate::kNo,
                d_normed_.data());
  Differentiate(layer, gradient, kUp, normed2_.data(), d_hidden_.data(), Accumulate::kYes,
                d_normed_.data());
  RmsNormBackward(h_.data(), layer.ffn_norm, inv2_.data(), d_normed_.data(), rows_,
                  input.config->embedding_length, dy, gradient.ffn_norm, *pool_);
}

// h = x + o(attention(rope(q(n)), rope(k(n)), v(n))), n = norm(x): dh becomes dx.
void LayerWorkspace::AttentionPartBackward(const Layer& layer, const LayerInput& input,
                                           const LayerGradient& gradient, bool want_dx, float* dh) {
  const ModelConfig& config = *input.config;
  Differentiate(layer, gradient, kO, attended_.data(), dh, Accumulate::kNo, d_attended_.data());
  AttentionBackward(
      Attention(input), {q_.data(), k_.data(), v_.data(), attended_.data(), lse_.data()},
      d_attended_.data(), dq_.data(), dk_.data(), dv_.data(), attention_scratch_, *pool_);
  RopeBackward(*input.rope, Rope(input, config.head_count), dq_.data(), *pool_);
  RopeBackward(*input.rope, Rope(input, config.head_count_kv), dk_.data(), *pool_);
  float* const d_normed = want_dx ? d_normed_.data() : nullptr;
  Differentiate(layer, gradient, kQ, normed1_.data(), dq_.data(), Accumulate::kNo, d_normed);
  Differentiate(layer, gradient, kK, normed1_.data(), dk_.data(), Accumulate::kYes, d_normed);
  Differentiate(layer, gradient, kV, normed1_.data(), dv_.data(), Accumulate::kYes, d_normed);
  if (!want_dx) return;
  RmsNormBackward(input.x, layer.attn_norm, inv1_.data(), d_normed, rows_, config.embedding_length,
                  dh, gradient.attn_norm, *pool_);
}

}  // namespace fedge
