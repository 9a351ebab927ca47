// A base model's layers and head with an adapter bound to them, and where their gradients go.
#ifndef FEDGE_COMMON_MODEL_BOUND_MODEL_H_
#define FEDGE_COMMON_MODEL_BOUND_MODEL_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"
#include "common/model/base_model.h"
#include "common/model/layer.h"

namespace fedge {

// Gradients of every weight, for pre-training; entry i belongs to the file's tensor i and has its
// element count (empty for tensors that are not trained, e.g. rope_freqs).
using WeightGradients = std::vector<std::vector<float>>;

// Where gradients are added: an adapter's flat buffer, or all weights.
struct GradientSink {
  float scale = 1;
  const LoraSpec* spec = nullptr;
  float* adapter = nullptr;
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
  // The factors of `adapter` (null: none), which must outlive their use, and the precision of the
  // frozen products. CHECKs that the adapter fits.
  void Bind(const LoraAdapter* adapter, Precision precision);

  const std::vector<Layer>& layers() const { return layers_; }
  const Linear& output() const { return output_; }
  int64_t max_rank() const;  // of the layers' linears

  LayerGradient GradientOf(int64_t layer, const GradientSink& sink) const;
  HeadGradient GradientOfHead(const GradientSink& sink) const;
  float* WeightSink(const GradientSink& sink, absl::string_view tensor) const;

 private:
  void BindFactors(const LoraAdapter* adapter);

  const BaseModel& model_;
  std::vector<Layer> layers_;
  Linear output_;
  // Names are looked up once for each shape of adapter: the module of each linear, -1 for none.
  bool bound_ = false;
  Digest bound_layout_;
  std::vector<std::array<int64_t, kLinearsPerLayer>> module_;
  int64_t output_module_ = -1;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_BOUND_MODEL_H_
