// Which linears of a base model an adapter may touch, under which names.
#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status.h"
#include "common/model/base_model.h"

namespace fedge {
namespace {

// What a name in LoraTargets stands for: linears of a block, fused or not.
struct TargetNames {
  std::array<absl::string_view, 3> names;  // short, GGUF, PEFT
  std::array<LinearIndex, 3> parts;        // the same one again where there are fewer
};
constexpr TargetNames kTargets[] = {
    {{"q", "attn_q", "q_proj"}, {kQ, kQ, kQ}},
    {{"k", "attn_k", "k_proj"}, {kK, kK, kK}},
    {{"v", "attn_v", "v_proj"}, {kV, kV, kV}},
    {{"qkv", "attn_qkv", "qkv_proj"}, {kQ, kK, kV}},
    {{"o", "attn_output", "o_proj"}, {kO, kO, kO}},
    {{"gate", "ffn_gate", "gate_proj"}, {kGate, kGate, kGate}},
    {{"up", "ffn_up", "up_proj"}, {kUp, kUp, kUp}},
    {{"gate_up", "ffn_gate_up", "gate_up_proj"}, {kGate, kUp, kUp}},
    {{"down", "ffn_down", "down_proj"}, {kDown, kDown, kDown}},
};
constexpr absl::string_view kOutputNames[] = {"output", "lm_head"};
constexpr absl::string_view kOutputTensor = "output.weight";

struct WantedModules {
  std::array<bool, kLinearsPerLayer> linear = {};  // of fused ones the parts
  bool output = false;
};

absl::StatusOr<WantedModules> ParseModules(const std::vector<std::string>& modules) {
  WantedModules wanted;
  for (const std::string& name : modules) {
    bool known = false;
    for (const TargetNames& target : kTargets) {
      const bool named =
          std::find(target.names.begin(), target.names.end(), name) != target.names.end();
      if (!named && name != "all") continue;
      known = true;
      for (const LinearIndex part : target.parts) wanted.linear[part] = true;
    }
    if (std::find(std::begin(kOutputNames), std::end(kOutputNames), name) !=
        std::end(kOutputNames)) {
      wanted.output = known = true;
    }
    if (!known) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown LoRA target module \"", name,
                       "\"; known: all, q, k, v, qkv, o, gate, up, gate_up, down, output"));
    }
  }
  if (modules.empty()) return absl::InvalidArgumentError("no LoRA target module is named");
  return wanted;
}

// What an adapter is to touch of linear `index` of a block: all of it (a part of that linear is the
// linear itself), or parts of a fused one.
std::vector<FusedPart> WantedParts(const WantedModules& wanted, const ModelConfig& config,
                                   LinearIndex index, int64_t rows) {
  std::vector<FusedPart> parts;
  int64_t wanted_rows = wanted.linear[index] ? rows : 0;
  for (const FusedPart& part : FusedParts(config)) {
    if (part.fused != index || !wanted.linear[part.part]) continue;
    parts.push_back(part);
    wanted_rows += part.rows;
  }
  if (wanted_rows == rows) return {{index, index, 0, rows}};
  return parts;
}

// The layers [first, last] of `targets`; OutOfRange never: InvalidArgument names both ends.
absl::StatusOr<std::pair<int64_t, int64_t>> LayerRange(const LoraTargets& targets,
                                                       int64_t block_count) {
  const int64_t last = targets.last_layer == -1 ? block_count - 1 : targets.last_layer;
  if (targets.first_layer >= 0 && targets.first_layer <= last && last < block_count) {
    return std::make_pair(targets.first_layer, last);
  }
  return absl::InvalidArgumentError(absl::StrCat("LoRA target layers ", targets.first_layer, " to ",
                                                 last, ": the model has layers 0 to ",
                                                 block_count - 1));
}

// The linear of that name which an adapter may touch; `matrix` is null when there is none.
struct FoundLinear {
  const WeightMatrix* matrix = nullptr;
  LinearIndex index = kLinearsPerLayer;  // of a block
};
FoundLinear FindLinear(const BaseModel& model, absl::string_view tensor) {
  if (tensor == kOutputTensor) {
    return {model.tied_output() ? nullptr : &model.output(), kLinearsPerLayer};
  }
  for (size_t i = 0; i < model.layers().size(); ++i) {
    const std::string prefix = absl::StrCat("blk.", i, ".");
    if (tensor.substr(0, prefix.size()) != prefix) continue;
    for (size_t j = 0; j < kLinearsPerLayer; ++j) {
      const auto index = static_cast<LinearIndex>(j);
      if (!model.layers()[i].Has(index)) continue;
      if (tensor == LinearTensorName(static_cast<int64_t>(i), index)) {
        return {&model.layers()[i].linear[j], index};
      }
    }
  }
  return {};
}

// Whether the module is on the whole linear or on exactly one of its parts.
bool IsLinear(const LoraModule& module, const FoundLinear& found, const ModelConfig& config) {
  if (!module.is_part()) return true;
  for (const FusedPart& part : FusedParts(config)) {
    if (part.fused != found.index) continue;
    if (part.first_row == module.first_row && part.rows == module.out_features) return true;
  }
  return false;
}

}  // namespace

absl::Status ParseLayerRange(absl::string_view text, LoraTargets& targets) {
  const std::vector<std::string> ends = absl::StrSplit(text, '-');
  const bool to_the_last = ends.size() == 2 && ends[1].empty();
  int64_t first = 0, last = -1;
  const bool ok = ends.size() <= 2 && absl::SimpleAtoi(ends[0], &first) && first >= 0 &&
                  (to_the_last || absl::SimpleAtoi(ends.back(), &last));
  if (!ok) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\": write FIRST-LAST, FIRST- or one layer, from 0 on"));
  }
  targets.first_layer = first;
  targets.last_layer = last;
  return absl::OkStatus();
}

absl::StatusOr<LoraSpec> BaseModel::MakeLoraSpec(const LoraTargets& targets) const {
  ASSIGN_OR_RETURN(const WantedModules wanted, ParseModules(targets.modules));
  ASSIGN_OR_RETURN(const auto range, LayerRange(targets, config_.block_count));
  if (wanted.output && tied_output_) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_->path(),
                     ": LoRA target \"output\": this model's output head is its "
                     "embedding, which adapters cannot touch"));
  }
  std::vector<LoraModule> modules;
  const auto add = [&](std::string tensor, const WeightMatrix& matrix, const FusedPart& part) {
    LoraModule module;
    module.tensor = std::move(tensor);
    module.in_features = matrix.cols;
    module.out_features = part.rows;
    module.rank = targets.rank;
    module.first_row = part.first_row;
    module.tensor_rows = part.rows == matrix.rows ? 0 : matrix.rows;
    modules.push_back(std::move(module));
  };
  for (int64_t i = range.first; i <= range.second; ++i) {
    const LayerWeights& layer = layers_[static_cast<size_t>(i)];
    for (size_t j = 0; j < kLinearsPerLayer; ++j) {
      const auto index = static_cast<LinearIndex>(j);
      if (!layer.Has(index)) continue;
      const WeightMatrix& matrix = layer.linear[j];
      for (const FusedPart& part : WantedParts(wanted, config_, index, matrix.rows)) {
        add(LinearTensorName(i, index), matrix, part);
      }
    }
  }
  if (wanted.output) {
    add(std::string(kOutputTensor), output_, {kLinearsPerLayer, kLinearsPerLayer, 0, output_.rows});
  }
  return LoraSpec::Create(config_.architecture, targets.alpha, std::move(modules));
}

absl::Status BaseModel::CheckAdapter(const LoraSpec& spec) const {
  if (spec.architecture() != config_.architecture) {
    return absl::FailedPreconditionError(
        absl::StrCat("the adapter is for architecture \"", spec.architecture(), "\", the base ",
                     file_->path(), " is \"", config_.architecture, "\""));
  }
  for (const LoraModule& module : spec.modules()) {
    const FoundLinear found = FindLinear(*this, module.tensor);
    if (found.matrix == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("the adapter changes tensor ", module.tensor, ", which the base ",
                       file_->path(), " does not have as a linear layer"));
    }
    const WeightMatrix& matrix = *found.matrix;
    const int64_t rows = module.is_part() ? module.tensor_rows : module.out_features;
    if (matrix.cols != module.in_features || matrix.rows != rows) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the adapter's module for tensor ", module.tensor, " maps ", module.in_features, " to ",
          rows, " features, the base ", file_->path(), " maps ", matrix.cols, " to ", matrix.rows));
    }
    if (IsLinear(module, found, config_)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("the adapter changes ", module.out_features, " rows from ", module.first_row,
                     " on of tensor ", module.tensor,
                     ", which are no linear layer of their own in ", file_->path()));
  }
  return absl::OkStatus();
}

}  // namespace fedge
