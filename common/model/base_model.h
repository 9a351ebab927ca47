// A frozen base model: configuration, tokenizer and weight views on a mapped GGUF file.
#ifndef FEDGE_COMMON_MODEL_BASE_MODEL_H_
#define FEDGE_COMMON_MODEL_BASE_MODEL_H_

#include <array>
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
#include "common/model/family.h"
#include "common/model/model_config.h"
#include "common/model/tokenizer.h"
#include "common/tensor/dtype.h"

namespace fedge {

// Weights of one transformer block, views on the file. What a block does not have is empty or null.
struct LayerWeights {
  std::array<WeightMatrix, kLinearsPerLayer> linear;  // [out, in]
  std::array<const float*, kLinearsPerLayer> bias = {};
  std::array<const float*, kNormsPerLayer> norm = {};  // [C]; of q and k [head_dim]
  int64_t window = 0;                                  // keys a query sees, itself included; 0: all

  bool Has(LinearIndex index) const { return linear[index].rows > 0; }
};

// Which frequencies a layer turns by: kGlobal, kLong beyond the original context where a file has
// factors for that, kLocal in layers with a window.
enum RopeKind { kGlobalRope, kLongRope, kLocalRope, kRopeKinds };

// Which linear layers get an adapter.
struct LoraTargets {
  // Names of q, k, v, o, gate, up, down (GGUF or PEFT spelling), or "all". "output" for a separate
  // head. "qkv" and "gate_up" stand for their parts. Where a file computes parts in one linear,
  // that linear gets one adapter when all of them are named, else each named one its own: "up" is
  // the half of a fused ffn_up.
  std::vector<std::string> modules = {"all"};
  int64_t rank = 16;
  float alpha = 32;
  // Layers that get one; -1: to the last.
  int64_t first_layer = 0;
  int64_t last_layer = -1;
};

// Sets the layers of `targets` from "FIRST-LAST", "FIRST-" or one layer, counted from 0.
// InvalidArgument for anything else; whether a model has these layers is MakeLoraSpec's to say.
absl::Status ParseLayerRange(absl::string_view text, LoraTargets& targets);

// Immutable, thread-safe, shared by all virtual nodes of a process.
class BaseModel {
 public:
  // Errors name the file and the place: NotFound, InvalidArgument (missing or mis-shaped tensor,
  // inconsistent hyper-parameters, vocabulary size against the embedding), Unimplemented
  // (architecture, tensor type, a tensor that would change the result in a way Fedge does not
  // have).
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
  const float* output_bias() const { return output_bias_; }  // [V], or null
  const RopeFrequencies& rope(RopeKind kind) const { return rope_[kind]; }
  // Of a layer, for sequences of up to `context` tokens.
  RopeKind RopeKindOf(const LayerWeights& layer, int64_t context) const;
  // InvalidArgument, with tensor and place, when a weight of the file is not a finite number.
  // Decodes all of it: seconds for a large file.
  absl::Status CheckFinite() const;
  // SHA-256 of the whole file; computed at the first call, then kept. Thread-safe.
  const Digest& sha256() const;

  // The adapter shape for `targets`. InvalidArgument for an unknown module name or rank.
  absl::StatusOr<LoraSpec> MakeLoraSpec(const LoraTargets& targets) const;
  // FailedPrecondition unless every module of `spec` is on a linear of this model, or on a part of
  // a fused one, with the same features.
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
  const float* output_bias_ = nullptr;
  std::array<RopeFrequencies, kRopeKinds> rope_;
  bool long_rope_ = false;                 // kLongRope is another than kGlobalRope
  std::vector<std::vector<float>> owned_;  // vectors that the file stores in another type than F32
  mutable absl::Mutex mutex_;
  mutable bool hashed_ ABSL_GUARDED_BY(mutex_) = false;
  mutable Digest sha256_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_BASE_MODEL_H_
