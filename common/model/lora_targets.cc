// Which linears of a base model an adapter may touch, under which names.
#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/model/base_model.h"
#include "common/model/layer.h"

namespace fedge {
namespace {

struct ModuleNames {
  LinearIndex index;
  std::array<absl::string_view, 3> names;  // short, GGUF, PEFT
};
constexpr ModuleNames kModules[] = {
    {kQ, {"q", "attn_q", "q_proj"}},
    {kK, {"k", "attn_k", "k_proj"}},
    {kV, {"v", "attn_v", "v_proj"}},
    {kO, {"o", "attn_output", "o_proj"}},
    {kGate, {"gate", "ffn_gate", "gate_proj"}},
    {kUp, {"up", "ffn_up", "up_proj"}},
    {kDown, {"down", "ffn_down", "down_proj"}},
};
constexpr absl::string_view kOutputNames[] = {"output", "lm_head"};
constexpr absl::string_view kOutputTensor = "output.weight";

struct WantedModules {
  std::array<bool, kLinearsPerLayer> linear = {};
  bool output = false;
};

absl::StatusOr<WantedModules> ParseModules(const std::vector<std::string>& modules) {
  WantedModules wanted;
  for (const std::string& name : modules) {
    bool known = false;
    for (const ModuleNames& module : kModules) {
      const bool named =
          std::find(module.names.begin(), module.names.end(), name) != module.names.end();
      if (!named && name != "all") continue;
      wanted.linear[module.index] = known = true;
    }
    if (std::find(std::begin(kOutputNames), std::end(kOutputNames), name) !=
        std::end(kOutputNames)) {
      wanted.output = known = true;
    }
    if (!known) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown LoRA target module \"", name,
                       "\"; known: all, q, k, v, o, gate, up, down, output"));
    }
  }
  if (modules.empty()) return absl::InvalidArgumentError("no LoRA target module is named");
  return wanted;
}

const WeightMatrix& MatrixOf(const LayerWeights& layer, LinearIndex index) {
  const WeightMatrix* const matrices[kLinearsPerLayer] = {
      &layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down};
  return *matrices[index];
}

// The linear of that name which an adapter may touch, or null.
const WeightMatrix* FindLinear(const BaseModel& model, absl::string_view tensor) {
  if (tensor == kOutputTensor) return model.tied_output() ? nullptr : &model.output();
  for (size_t i = 0; i < model.layers().size(); ++i) {
    const std::string prefix = absl::StrCat("blk.", i, ".");
    if (tensor.substr(0, prefix.size()) != prefix) continue;
    for (const ModuleNames& module : kModules) {
      if (tensor == LinearTensorName(static_cast<int64_t>(i), module.index)) {
        return &MatrixOf(model.layers()[i], module.index);
      }
    }
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<LoraSpec> BaseModel::MakeLoraSpec(const LoraTargets& targets) const {
  ASSIGN_OR_RETURN(const WantedModules wanted, ParseModules(targets.modules));
  if (wanted.output && tied_output_) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_->path(),
                     ": LoRA target \"output\": this model's output head is its "
                     "embedding, which adapters cannot touch"));
  }
  std::vector<LoraModule> modules;
  const auto add = [&](std::string tensor, const WeightMatrix& matrix) {
    LoraModule module;
    module.tensor = std::move(tensor);
    module.in_features = matrix.cols;
    module.out_features = matrix.rows;
    module.rank = targets.rank;
    modules.push_back(std::move(module));
  };
  for (size_t i = 0; i < layers_.size(); ++i) {
    for (const ModuleNames& module : kModules) {
      if (!wanted.linear[module.index]) continue;
      add(LinearTensorName(static_cast<int64_t>(i), module.index),
          MatrixOf(layers_[i], module.index));
    }
  }
  if (wanted.output) add(std::string(kOutputTensor), output_);
  return LoraSpec::Create(config_.architecture, targets.alpha, std::move(modules));
}

absl::Status BaseModel::CheckAdapter(const LoraSpec& spec) const {
  if (spec.architecture() != config_.architecture) {
    return absl::FailedPreconditionError(
        absl::StrCat("the adapter is for architecture \"", spec.architecture(), "\", the base ",
                     file_->path(), " is \"", config_.architecture, "\""));
  }
  for (const LoraModule& module : spec.modules()) {
    const WeightMatrix* const matrix = FindLinear(*this, module.tensor);
    if (matrix == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("the adapter changes tensor ", module.tensor, ", which the base ",
                       file_->path(), " does not have as a linear layer"));
    }
    if (matrix->cols != module.in_features || matrix->rows != module.out_features) {
      return absl::FailedPreconditionError(
          absl::StrCat("the adapter's module for tensor ", module.tensor, " maps ",
                       module.in_features, " to ", module.out_features, " features, the base ",
                       file_->path(), " maps ", matrix->cols, " to ", matrix->rows));
    }
  }
  return absl::OkStatus();
}

}  // namespace fedge
