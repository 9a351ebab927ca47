// Which type each tensor of a quantized file gets, after llama.cpp's conventions.
#ifndef FEDGE_TOOLS_PREPARE_TENSOR_TYPES_H_
#define FEDGE_TOOLS_PREPARE_TENSOR_TYPES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/formats/gguf_writer.h"
#include "common/tensor/dtype.h"

namespace fedge {

// What was asked for: a plain type, or a mix that gives some tensors more bits.
struct QuantizationMix {
  DType type = DType::kQ8_0;    // of most matrices
  std::optional<DType> more;    // of attn_v and ffn_down in some blocks
  std::optional<DType> qkv;     // of fused q|k|v
  std::optional<DType> output;  // of the output (or the tied embedding); else the convention
  uint32_t file_type = 0;       // general.file_type
};

// "Q4_0", "F16", ..., "Q4_K_M" or "Q5_K_M", in any case. InvalidArgument lists what there is.
absl::StatusOr<QuantizationMix> FindMix(absl::string_view name);
std::string MixNames();

// The tensors that are never quantized keep their type: vectors, norms, biases, RoPE factors.
bool IsQuantizable(absl::string_view name, const std::vector<int64_t>& dims);

// `type`, or what stands in for it where rows of `cols` values are not whole blocks: Q4_K -> Q5_0,
// Q5_K -> Q5_1, Q6_K -> Q8_0, and F16 where rows are not a multiple of 32.
DType FallbackType(DType type, int64_t cols);

// The type of every tensor of `shapes` (whose types are the present ones) under `mix`.
std::vector<DType> ChooseTypes(const QuantizationMix& mix,
                               const std::vector<GgufTensorShape>& shapes);

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_TENSOR_TYPES_H_
