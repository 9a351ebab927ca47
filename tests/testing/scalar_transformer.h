// A whole Llama with LoRA in plain loops over a flat vector of parameters: the oracle for losses
// and for gradients by the complex step.
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
    for (const float frequency : model.rope_frequencies()) {
      frequencies_.push_back(static_cast<double>(frequency));
    }
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
    for (int64_t i = 0; i < c.block_count; ++i) Block(p, batch, absl::StrCat("blk.", i, "."), x);
    x = ScalarRmsNorm(x, p.Tensor("output_norm.weight"), epsilon);
    const Values<T> logits =
        p.Apply(model_.tied_output() ? "token_embd.weight" : "output.weight", x, channels);
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

    Values<T> Apply(const std::string& name, const Values<T>& x, size_t in) const {
      const Values<T> w = Tensor(name);
      const size_t out = w.size() / in;
      Values<T> y = ScalarLinear(x, w, in, out);
      const int64_t index = spec == nullptr ? -1 : spec->Find(name);
      if (index < 0) return y;
      const LoraModule& module = spec->modules()[static_cast<size_t>(index)];
      const auto a = adapter.begin() + module.offset;
      const auto b = a + module.a_size();
      ScalarAddLora(x, Values<T>(a, b), Values<T>(b, b + module.b_size()), in, out,
                    static_cast<double>(spec->scale(module)), y);
      return y;
    }
  };

  template <typename T>
  void Block(const Parameters<T>& p, const Batch& batch, const std::string& block,
             Values<T>& x) const {
    const ModelConfig& c = model_.config();
    const size_t channels = static_cast<size_t>(c.embedding_length);
    const double epsilon = static_cast<double>(c.rms_epsilon);
    const ScalarAttentionShape s = {
        static_cast<size_t>(batch.batch_size), static_cast<size_t>(batch.length),
        static_cast<size_t>(c.head_count), static_cast<size_t>(c.head_count_kv),
        static_cast<size_t>(c.head_dim)};
    Values<T> n = ScalarRmsNorm(x, p.Tensor(block + "attn_norm.weight"), epsilon);
    const Values<T> q = ScalarRope(p.Apply(block + "attn_q.weight", n, channels), frequencies_,
                                   s.length, s.heads, s.head_dim);
    const Values<T> k = ScalarRope(p.Apply(block + "attn_k.weight", n, channels), frequencies_,
                                   s.length, s.kv_heads, s.head_dim);
    const Values<T> v = p.Apply(block + "attn_v.weight", n, channels);
    AddTo(p.Apply(block + "attn_output.weight", ScalarAttention(s, q, k, v), s.heads * s.head_dim),
          x);
    n = ScalarRmsNorm(x, p.Tensor(block + "ffn_norm.weight"), epsilon);
    const Values<T> hidden = ScalarSwiGlu(p.Apply(block + "ffn_gate.weight", n, channels),
                                          p.Apply(block + "ffn_up.weight", n, channels));
    AddTo(p.Apply(block + "ffn_down.weight", hidden, static_cast<size_t>(c.feed_forward_length)),
          x);
  }

  template <typename T>
  static void AddTo(const Values<T>& y, Values<T>& x) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  const BaseModel& model_;
  std::vector<double> frequencies_;
  std::vector<double> weights_;
  std::vector<size_t> offsets_;  // of each tensor in weights
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_SCALAR_TRANSFORMER_H_
