#include "common/model/bound_model.h"

#include <algorithm>
#include <string>
#include <utility>

#include "common/base/status.h"

namespace fedge {
namespace {

void BindLinear(absl::Span<const LoraAdapter* const> adapters, int64_t module, Linear& linear) {
  linear.rank = 0;
  linear.lora.clear();
  if (module < 0 || adapters.empty()) return;
  const LoraSpec& spec = adapters[0]->spec();
  const LoraModule& description = spec.modules()[static_cast<size_t>(module)];
  linear.rank = description.rank;
  linear.scale = spec.scale(description);
  for (const LoraAdapter* const adapter : adapters) {
    linear.lora.push_back({adapter->a(module).data(), adapter->b(module).data()});
  }
}

bool HasParts(const LoraSpec& spec, const std::string& tensor, LinearIndex fused,
              absl::Span<const FusedPart> parts) {
  for (const FusedPart& part : parts) {
    if (part.fused != fused) continue;
    const int64_t module = spec.FindPart(tensor, part.first_row);
    if (module >= 0 && spec.modules()[static_cast<size_t>(module)].is_part()) return true;
  }
  return false;
}

LinearGradient AdapterGradient(const GradientSink& sink, absl::Span<float* const> adapters,
                               int64_t module) {
  LinearGradient gradient;
  if (module < 0) return gradient;
  const LoraModule& description = sink.spec->modules()[static_cast<size_t>(module)];
  for (float* const adapter : adapters) {
    float* const a = adapter + description.offset;
    gradient.lora.push_back({a, a + description.a_size()});
  }
  return gradient;
}

}  // namespace

BoundModel::BoundModel(const BaseModel& model) : model_(model), module_(model.layers().size()) {
  for (const LayerWeights& weights : model.layers()) {
    Layer layer;
    layer.norm = weights.norm;
    layer.window = weights.window;
    for (size_t i = 0; i < kLinearsPerLayer; ++i) {
      layer.linear[i].stream = layers_.size() * kLinearsPerLayer + i;
    }
    layers_.push_back(std::move(layer));
  }
  PlaceLinears(nullptr);
  outputs_.resize(1);
  outputs_[0].weight = model.output();
  outputs_[0].bias = model.output_bias();
}

void BoundModel::PlaceLinears(const LoraSpec* spec) {
  const auto parts = FusedParts(model_.config());
  split_ = false;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LayerWeights& weights = model_.layers()[i];
    Layer& layer = layers_[i];
    for (size_t j = 0; j < kLinearsPerLayer; ++j) {
      layer.linear[j].weight = weights.linear[j];
      layer.linear[j].bias = weights.bias[j];
    }
    for (const FusedPart& part : parts) {
      const WeightMatrix& fused = weights.linear[part.fused];
      if (spec == nullptr || fused.rows == 0) continue;
      if (!HasParts(*spec, LinearTensorName(static_cast<int64_t>(i), part.fused), part.fused,
                    parts)) {
        continue;
      }
      const float* const bias = weights.bias[part.fused];
      layer.linear[part.part].weight = fused.Rows(part.first_row, part.rows);
      layer.linear[part.part].bias = bias == nullptr ? nullptr : bias + part.first_row;
      layer.linear[part.fused].weight = WeightMatrix();
      layer.linear[part.fused].bias = nullptr;
      split_ = true;
    }
  }
}

void BoundModel::FindModules(const LoraSpec& spec) {
  if (bound_ && bound_layout_ == spec.layout_hash()) return;
  const absl::Status fits = model_.CheckAdapter(spec);
  FEDGE_CHECK(fits.ok(), fits.ToString());
  PlaceLinears(&spec);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const auto layer = static_cast<int64_t>(i);
    for (size_t j = 0; j < kLinearsPerLayer; ++j) {
      const auto index = static_cast<LinearIndex>(j);
      module_[i][j] =
          model_.layers()[i].Has(index) ? spec.Find(LinearTensorName(layer, index)) : -1;
    }
    for (const FusedPart& part : FusedParts(model_.config())) {
      if (!model_.layers()[i].Has(part.fused) || layers_[i].Has(part.fused)) continue;
      module_[i][part.part] = spec.FindPart(LinearTensorName(layer, part.fused), part.first_row);
    }
  }
  output_module_ = spec.Find("output.weight");
  bound_ = true;
  bound_layout_ = spec.layout_hash();
}

void BoundModel::Bind(absl::Span<const LoraAdapter* const> adapters, Precision precision) {
  if (!adapters.empty()) {
    FindModules(adapters[0]->spec());
  } else if (split_) {
    PlaceLinears(nullptr);
    bound_ = false;
  }
  for (const LoraAdapter* const adapter : adapters) {
    FEDGE_CHECK(adapter->spec().layout_hash() == bound_layout_, "adapters of different layouts");
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    for (size_t j = 0; j < kLinearsPerLayer; ++j) {
      Linear& linear = layers_[i].linear[j];
      linear.precision = precision;
      BindLinear(adapters, module_[i][j], linear);
    }
  }
  outputs_.resize(std::max<size_t>(1, adapters.size()), outputs_[0]);
  for (size_t part = 0; part < outputs_.size(); ++part) {
    outputs_[part].precision = precision;
    BindLinear(adapters.empty() ? adapters : adapters.subspan(part, 1), output_module_,
               outputs_[part]);
  }
}

int64_t BoundModel::max_rank() const {
  int64_t rank = 0;
  for (const Layer& layer : layers_) {
    for (const Linear& linear : layer.linear) rank = std::max(rank, linear.rank);
  }
  return rank;
}

float* BoundModel::WeightSink(const GradientSink& sink, absl::string_view tensor) const {
  const GgufTensor* const found = model_.file().FindTensor(tensor);
  FEDGE_CHECK(found != nullptr, "no tensor ", tensor);
  return (*sink.weights)[static_cast<size_t>(found - model_.file().tensors().data())].data();
}

LayerGradient BoundModel::GradientOf(int64_t layer, const GradientSink& sink) const {
  const Layer& views = layers_[static_cast<size_t>(layer)];
  LayerGradient gradient;
  for (size_t j = 0; j < kLinearsPerLayer; ++j) {
    const auto index = static_cast<LinearIndex>(j);
    if (!views.Has(index)) continue;
    if (sink.weights == nullptr) {
      gradient.linear[j] =
          AdapterGradient(sink, sink.adapters, module_[static_cast<size_t>(layer)][j]);
      continue;
    }
    gradient.linear[j].weight = WeightSink(sink, LinearTensorName(layer, index));
    if (views.linear[j].bias == nullptr) continue;
    gradient.linear[j].bias = WeightSink(sink, LinearBiasName(layer, index));
  }
  if (sink.weights == nullptr) return gradient;
  for (size_t j = 0; j < kNormsPerLayer; ++j) {
    if (views.norm[j] == nullptr) continue;
    gradient.norm[j] = WeightSink(sink, NormTensorName(layer, static_cast<NormIndex>(j)));
  }
  return gradient;
}

HeadGradient BoundModel::GradientOfHead(const GradientSink& sink, size_t part) const {
  HeadGradient gradient;
  if (sink.weights == nullptr) {
    gradient.linear = AdapterGradient(sink, sink.adapters.subspan(part, 1), output_module_);
    return gradient;
  }
  gradient.linear.weight =
      WeightSink(sink, model_.tied_output() ? "token_embd.weight" : "output.weight");
  if (outputs_[part].bias != nullptr) gradient.linear.bias = WeightSink(sink, "output.bias");
  gradient.norm = WeightSink(sink, "output_norm.weight");
  return gradient;
}

}  // namespace fedge
