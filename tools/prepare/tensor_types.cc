#include "tools/prepare/tensor_types.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "tools/prepare/model_outline.h"

namespace fedge {
namespace {

constexpr DType kPlainTypes[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                 DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K,
                                 DType::kF16,  DType::kBF16, DType::kF32};

struct NamedMix {
  absl::string_view name;
  QuantizationMix mix;
};

std::vector<NamedMix> AllMixes() {
  std::vector<NamedMix> mixes;
  for (const DType type : kPlainTypes) {
    QuantizationMix mix;
    mix.type = type;
    mix.file_type = GgufFileType(type);
    mixes.push_back({DTypeName(type), mix});
  }
  mixes.push_back({"Q4_K_M", {DType::kQ4_K, DType::kQ6_K, DType::kQ5_K, std::nullopt, 15}});
  mixes.push_back({"Q5_K_M", {DType::kQ5_K, DType::kQ6_K, DType::kQ6_K, std::nullopt, 17}});
  return mixes;
}

// The block of "blk.<n>.<rest>"; -1 for others.
int64_t BlockOf(absl::string_view name) {
  if (!absl::ConsumePrefix(&name, "blk.")) return -1;
  int64_t block = -1;
  return absl::SimpleAtoi(name.substr(0, name.find('.')), &block) ? block : -1;
}

// The first and last eighth of the blocks, and every third between.
bool GetsMoreBits(int64_t block, int64_t blocks) {
  return block < blocks / 8 || block >= 7 * blocks / 8 || (block - blocks / 8) % 3 == 2;
}

bool IsFloatType(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}

}  // namespace

std::string MixNames() {
  const std::vector<NamedMix> mixes = AllMixes();
  return absl::StrJoin(
      mixes, ", ", [](std::string* out, const NamedMix& mix) { absl::StrAppend(out, mix.name); });
}

absl::StatusOr<QuantizationMix> FindMix(absl::string_view name) {
  for (const NamedMix& mix : AllMixes()) {
    if (absl::EqualsIgnoreCase(mix.name, name)) return mix.mix;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no type '", name, "' to quantize to; there are ", MixNames()));
}

bool IsQuantizable(absl::string_view name, const std::vector<int64_t>& dims) {
  const bool is_matrix =
      std::count_if(dims.begin(), dims.end(), [](int64_t d) { return d > 1; }) > 1;
  return is_matrix && absl::EndsWith(name, ".weight") && !absl::StrContains(name, "_norm") &&
         !absl::StartsWith(name, "rope_") && !absl::StrContains(name, "ffn_gate_inp");
}

DType FallbackType(DType type, int64_t cols) {
  if (cols % BlockElements(type) == 0) return type;
  if (cols % 32 != 0) return DType::kF16;
  switch (type) {
    case DType::kQ4_K:
      return DType::kQ5_0;
    case DType::kQ5_K:
      return DType::kQ5_1;
    default:
      return DType::kQ8_0;
  }
}

std::vector<DType> ChooseTypes(const QuantizationMix& mix,
                               const std::vector<GgufTensorShape>& shapes) {
  int64_t blocks = 0;
  bool has_output = false;
  for (const GgufTensorShape& shape : shapes) {
    blocks = std::max(blocks, BlockOf(shape.name) + 1);
    has_output = has_output || shape.name == "output.weight";
  }
  std::vector<DType> types;
  for (const GgufTensorShape& shape : shapes) {
    if (!IsQuantizable(shape.name, shape.dims)) {
      types.push_back(shape.type);
      continue;
    }
    const absl::string_view name = shape.name;
    DType type = mix.type;
    if (name == (has_output ? "output.weight" : "token_embd.weight")) {
      // The head decides every token: six bits at least.
      if (mix.output.has_value()) {
        type = *mix.output;
      } else if (!IsFloatType(type) && type != DType::kQ8_0) {
        type = DType::kQ6_K;
      }
    } else if (absl::StrContains(name, ".attn_qkv.")) {
      type = mix.qkv.value_or(type);
    } else if (mix.more.has_value() && GetsMoreBits(BlockOf(name), blocks) &&
               (absl::StrContains(name, ".attn_v.") || absl::StrContains(name, ".ffn_down."))) {
      type = *mix.more;
    }
    types.push_back(FallbackType(type, shape.dims[0]));
  }
  return types;
}

}  // namespace fedge
