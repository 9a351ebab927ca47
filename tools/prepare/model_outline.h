// The sizes of a model that is about to be written as GGUF, what its metadata says about them, and
// which tensors its family has, under which names in GGUF and in a Hugging Face folder.
#ifndef FEDGE_TOOLS_PREPARE_MODEL_OUTLINE_H_
#define FEDGE_TOOLS_PREPARE_MODEL_OUTLINE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/formats/gguf_writer.h"
#include "common/tensor/dtype.h"

namespace fedge {

// What families do differently in a file. How they compute is common/model's.
struct FamilyLayout {
  const char* architecture;        // general.architecture
  const char* hf_classes[2];       // "architectures" of config.json; null when fewer
  bool permutes_qk = false;        // rows of q and k interleaved for RoPE of neighbouring pairs
  bool has_qkv_bias = false;       // always; other families may have them
  bool has_qk_norm = false;        // RMS norms of each head of q and k
  bool fuses = false;              // q|k|v and gate|up are one matrix each
  bool has_post_norms = false;     // norms behind attention and feed-forward
  bool adds_one_to_norms = false;  // GGUF stores 1 + what Hugging Face stores
  bool writes_head_dim = false;    // attention.key_length even where it is hidden / heads
  bool writes_rope_dim = false;    // rope.dimension_count
};

// Null when there is none.
const FamilyLayout* FindFamilyLayout(absl::string_view architecture);
const FamilyLayout* FindLayoutOfClass(absl::string_view hf_class);
std::string FamilyNames();    // "llama, qwen2, ..."
std::string FamilyClasses();  // "LlamaForCausalLM, ..."

struct ModelOutline {
  const FamilyLayout* family = nullptr;
  int64_t hidden = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t feed_forward = 0;
  int64_t vocabulary = 0;
  int64_t context = 0;
  bool tied = true;  // no output.weight
  float rms_epsilon = 1e-6f;

  float rope_base = 10000;
  int64_t rope_dim = 0;                      // rotated values a head
  std::string rope_scaling;                  // rope.scaling.type: "", "linear" or "yarn"
  float rope_factor = 0;                     // of linear and yarn
  int64_t rope_original_context = 0;         // of yarn and phi3's long and short factors
  std::optional<float> rope_attn_factor;     // phi3
  std::vector<float> rope_freqs;             // llama 3: [rope_dim / 2] or empty
  std::vector<float> rope_long, rope_short;  // phi3: [rope_dim / 2] or empty

  std::optional<int64_t> sliding_window;  // gemma3, phi3
  int64_t sliding_pattern = 6;            // gemma3: every so many blocks one is global
  std::optional<float> rope_base_swa;     // gemma3: of the local blocks
  std::optional<float> final_softcap;     // gemma3
};

// InvalidArgument names the size that is out of range or does not fit the others.
absl::Status CheckOutline(const ModelOutline& outline);

// general.architecture and all keys of the architecture.
void WriteOutline(const ModelOutline& outline, GgufWriter& writer);

// How a tensor's rows differ from the Hugging Face one.
enum class RowChange { kNone, kInterleaveQ, kInterleaveK, kPlusOne };

struct OutlineTensor {
  std::string name;     // in GGUF
  std::string hf_name;  // in the safetensors; empty for what is computed from config.json
  std::vector<int64_t> dims;
  RowChange change = RowChange::kNone;
  const std::vector<float>* values = nullptr;  // of a tensor without hf_name: in the outline

  bool is_matrix() const { return dims.size() > 1; }
};

// The tensors every model of the outline has, in file order; views on `outline`.
std::vector<OutlineTensor> OutlineTensors(const ModelOutline& outline);

// The bias that belongs to a matrix of a Hugging Face folder, should it have one.
OutlineTensor BiasOf(const OutlineTensor& matrix);

// general.file_type of a file most of whose matrices have `type` (llama.cpp's llama_ftype).
uint32_t GgufFileType(DType type);
inline constexpr uint32_t kGgufQuantizationVersion = 2;

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_MODEL_OUTLINE_H_
