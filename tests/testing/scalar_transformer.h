// A whole decoder with LoRA in plain loops over a flat vector of parameters: the oracle for losses
// and for gradients by the complex step. What the families do differently is said here once more,
// apart from the product's table; frequencies come from the file's keys.
#ifndef FEDGE_TESTS_TESTING_SCALAR_TRANSFORMER_H_
#define FEDGE_TESTS_TESTING_SCALAR_TRANSFORMER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/status.h"
#include "common/model/base_model.h"
#include "common/model/transformer.h"
#include "common/tensor/quantize.h"
#include "tests/testing/scalar_ops.h"

namespace fedge::testing {

// Evaluates the loss as a function of the adapter's values or of all weights of the file (decoded,
// one after the other in the file's order).
class ScalarTransformer {
 public:
  explicit ScalarTransformer(const BaseModel& model) : model_(model) {
    const std::string& name = model.config().architecture;
    halves_ = name != "llama";
    head_norms_ = name == "qwen3" || name == "gemma3";
    gemma_ = name == "gemma3";
    for (const GgufTensor& tensor : model.file().tensors()) {
      const size_t size = static_cast<size_t>(tensor.num_elements());
      std::vector<float> values(size);
      Dequantize(tensor.type, reinterpret_cast<const uint8_t*>(tensor.data.data()),
                 tensor.num_elements(), values.data());
      offsets_.push_back(weights_.size());
      weights_.insert(weights_.end(), values.begin(), values.end());
    }
  }

  const std::vector<double>& weights() const { return weights_; }

  // Sum of losses. `adapter` (may be empty) in the layout of `spec`.
  template <typename T>
  T Loss(const Batch& batch, const Values<T>& weights, const LoraSpec* spec,
         const Values<T>& adapter) const {
    const Parameters<T> p = {*this, weights, spec, adapter};
    const ModelConfig& c = model_.config();
    const size_t channels = static_cast<size_t>(c.embedding_length);
    const double epsilon = static_cast<double>(c.rms_epsilon);
    Values<T> x;
    const Values<T> table = p.Tensor("token_embd.weight");
    for (const TokenId token : batch.tokens) {
      const auto row = table.begin() + token * c.embedding_length;
      x.insert(x.end(), row, row + c.embedding_length);
    }
    if (gemma_) {
      for (T& value : x) value *= std::sqrt(static_cast<double>(channels));
    }
    for (int64_t i = 0; i < c.block_count; ++i) Block(p, batch, i, x);
    x = ScalarRmsNorm(x, p.Tensor("output_norm.weight"), epsilon);
    Values<T> logits = p.Apply(model_.tied_output() ? "token_embd" : "output", x, channels);
    const double cap = Key("final_logit_softcapping", 0);
    if (cap != 0) logits = ScalarSoftCap(logits, cap);
    return ScalarCrossEntropy(logits, batch.targets, static_cast<size_t>(c.vocab_size));
  }

 private:
  template <typename T>
  struct Parameters {
    const ScalarTransformer& self;
    const Values<T>& weights;
    const LoraSpec* spec;
    const Values<T>& adapter;

    Values<T> Tensor(const std::string& name) const {
      const std::vector<GgufTensor>& tensors = self.model_.file().tensors();
      for (size_t i = 0; i < tensors.size(); ++i) {
        if (tensors[i].name != name) continue;
        const auto begin = weights.begin() + static_cast<std::ptrdiff_t>(self.offsets_[i]);
        return Values<T>(begin, begin + tensors[i].num_elements());
      }
      FEDGE_CHECK(false, "no tensor ", name);
      return {};
    }

    // <name>.weight with the adapter on it, <name>.bias where there is one. The bias of a tied head
    // is the head's.
    Values<T> Apply(const std::string& name, const Values<T>& x, size_t in) const {
      const Values<T> w = Tensor(name + ".weight");
      const size_t out = w.size() / in;
      Values<T> y = ScalarLinear(x, w, in, out);
      const std::string bias = (name == "token_embd" ? "output" : name) + ".bias";
      if (self.Has(bias)) {
        const Values<T> b = Tensor(bias);
        for (size_t i = 0; i < y.size(); ++i) y[i] += b[i % out];
      }
      if (spec == nullptr) return y;
      for (const LoraModule& module : spec->modules()) {
        if (module.tensor != name + ".weight") continue;
        const auto a = adapter.begin() + module.offset;
        const auto b = a + module.a_size();
        const size_t first = static_cast<size_t>(module.first_row);
        const size_t rows = static_cast<size_t>(module.out_features);
        Values<T> change(y.size() / out * rows);
        ScalarAddLora(x, Values<T>(a, b), Values<T>(b, b + module.b_size()), in, rows,
                      static_cast<double>(spec->scale(module)), change);
        for (size_t i = 0; i < change.size(); ++i)
          y[i / rows * out + first + i % rows] += change[i];
      }
      return y;
    }
  };

  bool Has(const std::string& tensor) const { return model_.file().FindTensor(tensor) != nullptr; }

  double Key(const std::string& name, double fallback) const {
    return model_.file()
        .GetFloatOr(absl::StrCat(model_.config().architecture, ".", name), fallback)
        .value();
  }

  bool IsLocal(int64_t layer) const {
    return gemma_ && Key("attention.sliding_window", 0) > 0 && layer % 6 < 5;
  }

  template <typename T>
  ScalarRopeSettings Rope(const Parameters<T>& p, const Batch& batch, int64_t layer) const {
    const ModelConfig& c = model_.config();
    ScalarRopeSettings rope;
    rope.halves = halves_;
    rope.magnitude = Key("rope.scaling.attn_factor", 1);
    const double base =
        IsLocal(layer) ? Key("rope.freq_base_swa", 10000) : Key("rope.freq_base", 0);
    const double original = Key("rope.scaling.original_context_length", 1e9);
    const bool beyond = static_cast<double>(batch.length) > original;
    std::string tensor = beyond ? "rope_factors_long.weight" : "rope_factors_short.weight";
    if (Has("rope_freqs.weight")) tensor = "rope_freqs.weight";
    Values<T> factors(static_cast<size_t>(c.rope_dim / 2), T(1));
    if (Has(tensor) && !gemma_) factors = p.Tensor(tensor);
    for (size_t i = 0; i < factors.size(); ++i) {
      const double exponent = -2 * static_cast<double>(i) / static_cast<double>(c.rope_dim);
      const double scale = IsLocal(layer) ? 1 : Key("rope.scaling.factor", 1);
      rope.frequencies.push_back(std::pow(base, exponent) / RealPart(factors[i]) / scale);
    }
    return rope;
  }

  // Of [q | k | v] or [gate | up]: part i, from one fused linear or from one of its own.
  template <typename T>
  std::vector<Values<T>> Parts(const Parameters<T>& p, const Values<T>& x, const std::string& fused,
                               const std::vector<std::string>& names,
                               const std::vector<size_t>& widths) const {
    const size_t channels = static_cast<size_t>(model_.config().embedding_length);
    std::vector<Values<T>> parts;
    if (Has(names[0] + ".weight")) {
      for (const std::string& name : names) parts.push_back(p.Apply(name, x, channels));
      return parts;
    }
    const Values<T> all = p.Apply(fused, x, channels);
    size_t total = 0, begin = 0;
    for (const size_t width : widths) total += width;
    for (const size_t width : widths) {
      parts.push_back(ScalarColumns(all, total, begin, begin + width));
      begin += width;
    }
    return parts;
  }

  template <typename T>
  void Block(const Parameters<T>& p, const Batch& batch, int64_t layer, Values<T>& x) const {
    const ModelConfig& c = model_.config();
    const std::string block = absl::StrCat("blk.", layer, ".");
    const double epsilon = static_cast<double>(c.rms_epsilon);
    const auto norm = [&](const std::string& name, const Values<T>& values) {
      return ScalarRmsNorm(values, p.Tensor(block + name + ".weight"), epsilon);
    };
    ScalarAttentionShape s = {static_cast<size_t>(batch.batch_size),
                              static_cast<size_t>(batch.length), static_cast<size_t>(c.head_count),
                              static_cast<size_t>(c.head_count_kv),
                              static_cast<size_t>(c.head_dim)};
    s.scale = Key("attention.scale", 0);
    if (IsLocal(layer)) s.window = static_cast<size_t>(Key("attention.sliding_window", 0));
    const size_t kv_width = s.kv_heads * s.head_dim;
    std::vector<Values<T>> qkv = Parts(p, norm("attn_norm", x), block + "attn_qkv",
                                       {block + "attn_q", block + "attn_k", block + "attn_v"},
                                       {s.heads * s.head_dim, kv_width, kv_width});
    if (head_norms_) {
      qkv[0] = norm("attn_q_norm", qkv[0]);
      qkv[1] = norm("attn_k_norm", qkv[1]);
    }
    const ScalarRopeSettings rope = Rope(p, batch, layer);
    qkv[0] = ScalarRope(qkv[0], rope, s.length, s.heads, s.head_dim);
    qkv[1] = ScalarRope(qkv[1], rope, s.length, s.kv_heads, s.head_dim);
    Values<T> y = p.Apply(block + "attn_output", ScalarAttention(s, qkv[0], qkv[1], qkv[2]),
                          s.heads * s.head_dim);
    AddTo(gemma_ ? norm("post_attention_norm", y) : y, x);
    const size_t hidden = static_cast<size_t>(c.feed_forward_length);
    const std::vector<Values<T>> gate =
        Parts(p, norm("ffn_norm", x), block + "ffn_up", {block + "ffn_gate", block + "ffn_up"},
              {hidden, hidden});
    y = p.Apply(block + "ffn_down",
                gemma_ ? ScalarGeluGlu(gate[0], gate[1]) : ScalarSwiGlu(gate[0], gate[1]), hidden);
    AddTo(gemma_ ? norm("post_ffw_norm", y) : y, x);
  }

  template <typename T>
  static void AddTo(const Values<T>& y, Values<T>& x) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  const BaseModel& model_;
  bool halves_ = false, head_norms_ = false, gemma_ = false;
  std::vector<double> weights_;
  std::vector<size_t> offsets_;  // of each tensor in weights
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_SCALAR_TRANSFORMER_H_
