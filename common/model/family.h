// What the supported model families do differently: rows of one table, not copies of the decoder.
//
// What a single file decides (biases, fused tensors, a tied head, sizes) is read from that file,
// for any family.
#ifndef FEDGE_COMMON_MODEL_FAMILY_H_
#define FEDGE_COMMON_MODEL_FAMILY_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fedge {

// The two values of a head that RoPE turns together: 2i and 2i + 1, or i and i + rope_dim / 2
// (llama.cpp's NORM and NEOX).
enum class RopePairs { kAdjacent, kHalves };

// What the gate of the feed-forward part goes through; kGeluTanh is 0.5 x (1 + tanh(sqrt(2 / pi)
// (x + 0.044715 x^3))).
enum class GateFunction { kSilu, kGeluTanh };

struct ModelFamily {
  absl::string_view architecture;  // GGUF's general.architecture
  RopePairs rope_pairs = RopePairs::kHalves;
  GateFunction gate = GateFunction::kSilu;
  bool qkv_bias = false;          // the biases of q, k and v must exist
  bool qk_norm = false;           // RMSNorm of each head of q and k, before RoPE
  bool post_norms = false;        // RMSNorm of what each part adds to the residual stream
  bool scaled_embedding = false;  // the embedding's rows times sqrt(C)
  bool sliding_window = false;    // attention.sliding_window counts
  bool fused_gate_up = false;     // ffn_up has 2F rows: gate, then up
  bool rope_freqs = false;        // rope_freqs.weight divides the frequencies
  bool rope_factors = false;      // rope_factors_long/short.weight do, by the context's length
  int64_t wide_scale_blocks = 0;  // models of so many blocks scale scores by 1 / sqrt(C / H)
  int64_t window_period = 0;      // of so many layers the last sees everything, unless the file
                                  // says otherwise
};

absl::Span<const ModelFamily> ModelFamilies();
const ModelFamily* FindModelFamily(absl::string_view architecture);  // null: not supported
std::string SupportedFamilies();                                     // "llama, qwen2, ..."

// The linears of a block, in the canonical order of an adapter's modules. A block has kQkv or all
// of kQ, kK, kV, and kGateUp or both of kGate and kUp. The rows of a fused one are those of its
// parts, one after the other; an adapter is on all of it or on parts.
enum LinearIndex { kQ, kK, kV, kQkv, kO, kGate, kUp, kGateUp, kDown, kLinearsPerLayer };

// GGUF's name of a linear of block `layer`: "blk.0.attn_q.weight". kUp and kGateUp share theirs.
std::string LinearTensorName(int64_t layer, LinearIndex index);
std::string LinearBiasName(int64_t layer, LinearIndex index);  // "blk.0.attn_q.bias"

// The RMSNorms of a block.
enum NormIndex { kAttnNorm, kQNorm, kKNorm, kPostAttnNorm, kFfnNorm, kPostFfnNorm, kNormsPerLayer };

std::string NormTensorName(int64_t layer, NormIndex index);  // "blk.0.attn_norm.weight"

// Tensors that only shape RoPE's frequencies; they are not trained.
inline constexpr absl::string_view kRopeFreqsTensor = "rope_freqs.weight";
inline constexpr absl::string_view kRopeLongTensor = "rope_factors_long.weight";
inline constexpr absl::string_view kRopeShortTensor = "rope_factors_short.weight";
bool IsRopeTensor(absl::string_view name);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_FAMILY_H_
