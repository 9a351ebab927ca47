// A frozen base model: configuration, tokenizer and weight views on a mapped GGUF file.
#ifndef FEDGE_COMMON_MODEL_BASE_MODEL_H_
#define FEDGE_COMMON_MODEL_BASE_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"
#include "common/base/env.h"
#include "common/formats/gguf.h"
#include "common/model/tokenizer.h"
#include "common/tensor/dtype.h"

namespace fedge {

struct ModelConfig {
  std::string architecture;  // "llama"
  int64_t vocab_size = 0;
  int64_t context_length = 0;
  int64_t embedding_length = 0;     // C
  int64_t block_count = 0;          // layers
  int64_t feed_forward_length = 0;  // F
  int64_t head_count = 0;           // H
  int64_t head_count_kv = 0;        // KV heads; H is a multiple
  int64_t head_dim = 0;
  int64_t rope_dim = 0;  // rotated values a head, even, <= head_dim
  float rms_epsilon = 0;
  float rope_freq_base = 10000;
  float rope_freq_scale = 1;  // linear scaling: 1 / factor
};

// Weights of one transformer block. Biases are null where absent.
struct LayerWeights {
  const float* attn_norm = nullptr;  // [C]
  const float* ffn_norm = nullptr;   // [C]
  WeightMatrix q, k, v, o;           // [H*hd, C], [KV*hd, C], [KV*hd, C], [C, H*hd]
  WeightMatrix gate, up, down;       // [F, C], [F, C], [C, F]
};

// Which linear layers get an adapter.
struct LoraTargets {
  // Names of q, k, v, o, gate, up, down (GGUF or PEFT spelling), or "all". "output" for a separate
  // head.
  std::vector<std::string> modules = {"all"};
  int64_t rank = 16;
  float alpha = 32;
};

// Immutable, thread-safe, shared by all virtual nodes of a process.
class BaseModel {
 public:
  // Errors name the file and the place: NotFound, InvalidArgument (missing or mis-shaped tensor,
  // inconsistent hyper-parameters, vocabulary size against the embedding), Unimplemented
  // (architecture, tensor type).
  static absl::StatusOr<std::shared_ptr<const BaseModel>> Load(absl::string_view path, Env& env);
  // From an open file (weights made in memory: tests, pre-training). `file` is kept alive.
  static absl::StatusOr<std::shared_ptr<const BaseModel>> FromGguf(
      std::shared_ptr<const GgufFile> file);

  const ModelConfig& config() const { return config_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const GgufFile& file() const { return *file_; }
  const std::vector<LayerWeights>& layers() const { return layers_; }
  const WeightMatrix& token_embedding() const { return token_embedding_; }  // [V, C]
  const WeightMatrix& output() const { return output_; }  // [V, C]; token_embedding when tied
  bool tied_output() const { return tied_output_; }
  const float* output_norm() const { return output_norm_; }  // [C]
  // RoPE frequency of pair i: theta_i = freq_scale * base^(-2i/rope_dim) / rope_freqs[i].
  // [rope_dim/2]
  const std::vector<float>& rope_frequencies() const { return rope_frequencies_; }
  // SHA-256 of the whole file; computed at the first call, then kept. Thread-safe.
  const Digest& sha256() const;

  // The adapter shape for `targets`. InvalidArgument for an unknown module name or rank.
  absl::StatusOr<LoraSpec> MakeLoraSpec(const LoraTargets& targets) const;
  // FailedPrecondition unless every module of `spec` exists here with the same features.
  absl::Status CheckAdapter(const LoraSpec& spec) const;

 private:
  BaseModel() = default;
  friend class BaseModelLoader;

  std::shared_ptr<const GgufFile> file_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  ModelConfig config_;
  std::vector<LayerWeights> layers_;
  WeightMatrix token_embedding_;
  WeightMatrix output_;
  bool tied_output_ = false;
  const float* output_norm_ = nullptr;
  std::vector<float> rope_frequencies_;
  std::vector<std::vector<float>> owned_;  // norms that the file stores in another type than F32
  mutable absl::Mutex mutex_;
  mutable bool hashed_ ABSL_GUARDED_BY(mutex_) = false;
  mutable Digest sha256_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_BASE_MODEL_H_
