// A base model's layers and head with adapters bound to them, and where their gradients go. Several
// adapters of one spec may be bound: each has a part of the rows of a call.
#ifndef FEDGE_COMMON_MODEL_BOUND_MODEL_H_
#define FEDGE_COMMON_MODEL_BOUND_MODEL_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"
#include "common/model/base_model.h"
#include "common/model/layer.h"

namespace fedge {

// Gradients of every weight, for pre-training; entry i belongs to the file's tensor i and has its
// element count (empty for tensors that are not trained, e.g. rope_freqs).
using WeightGradients = std::vector<std::vector<float>>;

// Where gradients are added: the flat buffer of each bound adapter, or all weights.
struct GradientSink {
  const LoraSpec* spec = nullptr;
  absl::Span<float* const> adapters;
  WeightGradients* weights = nullptr;
};

// Of the head and the norm before it; null: not wanted.
struct HeadGradient {
  LinearGradient linear;
  float* norm = nullptr;
};

class BoundModel {
 public:
  explicit BoundModel(const BaseModel& model);

  const BaseModel& model() const { return model_; }
  // The factors of `adapters` (may be empty), which must outlive their use, and the precision of
  // the frozen products. CHECKs that the adapters have one spec, which fits.
  void Bind(absl::Span<const LoraAdapter* const> adapters, Precision precision);

  const std::vector<Layer>& layers() const { return layers_; }
  // The head of one adapter's rows; without adapters there is a part 0.
  const Linear& output(size_t part) const { return outputs_[part]; }
  int64_t max_rank() const;  // of the layers' linears

  LayerGradient GradientOf(int64_t layer, const GradientSink& sink) const;
  HeadGradient GradientOfHead(const GradientSink& sink, size_t part) const;
  float* WeightSink(const GradientSink& sink, absl::string_view tensor) const;

 private:
  // Fused linears as the file has them, or as their parts where `spec` (may be null) has modules on
  // parts.
  void PlaceLinears(const LoraSpec* spec);
  void FindModules(const LoraSpec& spec);

  const BaseModel& model_;
  std::vector<Layer> layers_;
  std::vector<Linear> outputs_;  // of each part
  bool split_ = false;           // some fused linear is placed as its parts
  // Names are looked up once for each shape of adapter: the module of each linear, -1 for none.
  bool bound_ = false;
  Digest bound_layout_;
  std::vector<std::array<int64_t, kLinearsPerLayer>> module_;
  int64_t output_module_ = -1;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_BOUND_MODEL_H_
