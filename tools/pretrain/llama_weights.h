// The trainable weights of a small Llama: a BaseModel whose F32 tensors may be changed in place.
#ifndef FEDGE_TOOLS_PRETRAIN_LLAMA_WEIGHTS_H_
#define FEDGE_TOOLS_PRETRAIN_LLAMA_WEIGHTS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/model/base_model.h"
#include "common/tensor/dtype.h"
#include "tools/recipes/sentencepiece_model.h"

namespace fedge {

// Hyper-parameters; the vocabulary's size comes from the vocabulary. The head is tied to the
// embedding.
struct LlamaShape {
  int64_t embedding_length = 192;
  int64_t block_count = 6;
  int64_t head_count = 6;
  int64_t head_count_kv = 3;
  int64_t feed_forward_length = 512;
  int64_t context_length = 512;
  float rope_freq_base = 10000;
  float rms_epsilon = 1e-5f;
};

// What the file says about itself (general.*); empty ones are left out.
struct ModelLabels {
  std::string name;
  std::string description;
  std::string license;
};

// InvalidArgument: dimensions that do not fit together (the message names them), a vocabulary that
// is not of SentencePiece's BPE type or lacks the 256 byte pieces (llama.cpp needs both), or has no
// unknown, begin or end piece.
absl::Status CheckLlama(const LlamaShape& shape, const SentencePieceVocab& vocab);

// Owns the bytes of an F32 GGUF in memory. The model is a view on them: values written through
// values(i) are what the next Transformer call over model() computes with. Do not write while such
// a call runs. model() must not outlive this object.
class LlamaWeights {
 public:
  // Matrices from N(0, 0.02), those that write into the residual stream (attn_output, ffn_down)
  // smaller by sqrt(2 * block_count) (Radford et al. 2019); norms 1. A pure function of `seed`.
  static absl::StatusOr<std::unique_ptr<LlamaWeights>> Create(const LlamaShape& shape,
                                                              const SentencePieceVocab& vocab,
                                                              const ModelLabels& labels,
                                                              uint64_t seed);
  LlamaWeights(const LlamaWeights&) = delete;
  LlamaWeights& operator=(const LlamaWeights&) = delete;

  const std::shared_ptr<const BaseModel>& model() const { return model_; }
  size_t num_tensors() const { return values_.size(); }
  // Tensor i of model()->file().tensors().
  absl::Span<float> values(size_t tensor) { return values_[tensor]; }
  absl::Span<const float> values(size_t tensor) const { return values_[tensor]; }
  bool is_matrix(size_t tensor) const;  // false: a norm
  int64_t num_parameters() const;

  // The whole GGUF with matrices in `type` (any) where their rows are whole blocks, else F32; norms
  // F32.
  absl::StatusOr<std::string> Export(DType type) const;

 private:
  LlamaWeights() = default;

  struct alignas(64) Line {
    char bytes[64];
  };
  LlamaShape shape_;
  SentencePieceVocab vocab_;
  ModelLabels labels_;
  std::vector<Line> buffer_;  // the GGUF's bytes, aligned for the SIMD unit
  std::vector<absl::Span<float>> values_;
  std::shared_ptr<const BaseModel> model_;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_PRETRAIN_LLAMA_WEIGHTS_H_
