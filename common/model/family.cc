#include "common/model/family.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace fedge {
namespace {

constexpr ModelFamily kFamilies[] = {
    {
        .architecture = "llama",
        .rope_pairs = RopePairs::kAdjacent,
        .rope_freqs = true,
        .rope_factors = true,
    },
    {
        .architecture = "qwen2",
        .qkv_bias = true,
    },
    {
        .architecture = "qwen3",
        .qk_norm = true,
    },
    {
        .architecture = "gemma3",
        .gate = GateFunction::kGeluTanh,
        .qk_norm = true,
        .post_norms = true,
        .scaled_embedding = true,
        .sliding_window = true,
        .wide_scale_blocks = 62,  // the 27 B model
        .window_period = 6,
    },
    {
        .architecture = "phi3",
        .fused_gate_up = true,
        .rope_factors = true,
    },
};

constexpr absl::string_view kLinearNames[kLinearsPerLayer] = {
    "attn_q",   "attn_k", "attn_v", "attn_qkv", "attn_output",
    "ffn_gate", "ffn_up", "ffn_up", "ffn_down",
};

constexpr absl::string_view kNormNames[kNormsPerLayer] = {
    "attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm",
};

}  // namespace

absl::Span<const ModelFamily> ModelFamilies() { return kFamilies; }

const ModelFamily* FindModelFamily(absl::string_view architecture) {
  for (const ModelFamily& family : kFamilies) {
    if (family.architecture == architecture) return &family;
  }
  return nullptr;
}

std::string SupportedFamilies() {
  std::vector<absl::string_view> names;
  for (const ModelFamily& family : kFamilies) names.push_back(family.architecture);
  return absl::StrJoin(names, ", ");
}

std::string LinearTensorName(int64_t layer, LinearIndex index) {
  return absl::StrCat("blk.", layer, ".", kLinearNames[index], ".weight");
}

std::string LinearBiasName(int64_t layer, LinearIndex index) {
  return absl::StrCat("blk.", layer, ".", kLinearNames[index], ".bias");
}

std::string NormTensorName(int64_t layer, NormIndex index) {
  return absl::StrCat("blk.", layer, ".", kNormNames[index], ".weight");
}

bool IsRopeTensor(absl::string_view name) {
  return name == kRopeFreqsTensor || name == kRopeLongTensor || name == kRopeShortTensor;
}

}  // namespace fedge
