#include "tools/prepare/model_outline.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr FamilyLayout kFamilies[] = {
    {.architecture = "llama",
     .hf_classes = {"LlamaForCausalLM", "MistralForCausalLM"},
     .permutes_qk = true,
     .writes_rope_dim = true},
    {.architecture = "qwen2", .hf_classes = {"Qwen2ForCausalLM", nullptr}, .has_qkv_bias = true},
    {.architecture = "qwen3",
     .hf_classes = {"Qwen3ForCausalLM", nullptr},
     .has_qk_norm = true,
     .writes_head_dim = true},
    {.architecture = "gemma3",
     .hf_classes = {"Gemma3ForCausalLM", nullptr},
     .has_qk_norm = true,
     .has_post_norms = true,
     .adds_one_to_norms = true,
     .writes_head_dim = true},
    {.architecture = "phi3",
     .hf_classes = {"Phi3ForCausalLM", nullptr},
     .fuses = true,
     .writes_rope_dim = true},
};

constexpr int64_t kMaxSize = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxContext = int64_t{1} << 31;

absl::Status CheckFactors(absl::string_view name, const std::vector<float>& factors,
                          int64_t rope_dim) {
  if (factors.empty() || static_cast<int64_t>(factors.size()) == rope_dim / 2) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(factors.size(), " ", name, " factors of RoPE for ",
                                                 rope_dim / 2, " rotated pairs"));
}

}  // namespace

const FamilyLayout* FindFamilyLayout(absl::string_view architecture) {
  for (const FamilyLayout& family : kFamilies) {
    if (architecture == family.architecture) return &family;
  }
  return nullptr;
}

const FamilyLayout* FindLayoutOfClass(absl::string_view hf_class) {
  for (const FamilyLayout& family : kFamilies) {
    for (const char* name : family.hf_classes) {
      if (name != nullptr && hf_class == name) return &family;
    }
  }
  return nullptr;
}

std::string FamilyNames() {
  std::vector<absl::string_view> names;
  for (const FamilyLayout& family : kFamilies) names.push_back(family.architecture);
  return absl::StrJoin(names, ", ");
}

std::string FamilyClasses() {
  std::vector<absl::string_view> names;
  for (const FamilyLayout& family : kFamilies) {
    for (const char* name : family.hf_classes) {
      if (name != nullptr) names.push_back(name);
    }
  }
  return absl::StrJoin(names, ", ");
}

absl::Status CheckOutline(const ModelOutline& outline) {
  const struct {
    absl::string_view name;
    int64_t value;
    int64_t limit;
  } sizes[] = {
      {"hidden size", outline.hidden, kMaxSize},
      {"number of layers", outline.layers, kMaxLayers},
      {"number of heads", outline.heads, kMaxSize},
      {"number of key/value heads", outline.kv_heads, kMaxSize},
      {"head size", outline.head_dim, kMaxSize},
      {"feed-forward size", outline.feed_forward, kMaxSize},
      {"vocabulary", outline.vocabulary, kMaxSize},
      {"context length", outline.context, kMaxContext},
  };
  for (const auto& size : sizes) {
    if (size.value < 1 || size.value > size.limit) {
      return absl::InvalidArgumentError(
          absl::StrCat("a ", size.name, " of ", size.value, " is not within 1 and ", size.limit));
    }
  }
  if (outline.heads % outline.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(outline.heads, " heads are not a multiple of ",
                                                   outline.kv_heads, " key/value heads"));
  }
  if (outline.rope_dim < 2 || outline.rope_dim % 2 != 0 || outline.rope_dim > outline.head_dim) {
    return absl::InvalidArgumentError(absl::StrCat("RoPE turns ", outline.rope_dim,
                                                   " values a head; it must be even and at most "
                                                   "the head size ",
                                                   outline.head_dim));
  }
  RETURN_IF_ERROR(CheckFactors("frequency", outline.rope_freqs, outline.rope_dim));
  RETURN_IF_ERROR(CheckFactors("long", outline.rope_long, outline.rope_dim));
  return CheckFactors("short", outline.rope_short, outline.rope_dim);
}

void WriteOutline(const ModelOutline& outline, GgufWriter& writer) {
  const FamilyLayout& family = *outline.family;
  const auto key = [&](absl::string_view name) {
    return absl::StrCat(family.architecture, ".", name);
  };
  const auto set = [&](absl::string_view name, int64_t value) {
    writer.SetUint32(key(name), static_cast<uint32_t>(value));
  };
  set("context_length", outline.context);
  set("embedding_length", outline.hidden);
  set("block_count", outline.layers);
  set("feed_forward_length", outline.feed_forward);
  set("attention.head_count", outline.heads);
  set("attention.head_count_kv", outline.kv_heads);
  writer.SetFloat32(key("attention.layer_norm_rms_epsilon"), outline.rms_epsilon);
  writer.SetFloat32(key("rope.freq_base"), outline.rope_base);
  set("vocab_size", outline.vocabulary);
  if (family.writes_head_dim || outline.head_dim * outline.heads != outline.hidden) {
    set("attention.key_length", outline.head_dim);
    set("attention.value_length", outline.head_dim);
  }
  if (family.writes_rope_dim || outline.rope_dim != outline.head_dim) {
    set("rope.dimension_count", outline.rope_dim);
  }
  if (outline.sliding_window.has_value()) set("attention.sliding_window", *outline.sliding_window);
  if (outline.sliding_pattern != 6) {
    set("attention.sliding_window_pattern", outline.sliding_pattern);
  }
  if (outline.rope_base_swa.has_value()) {
    writer.SetFloat32(key("rope.freq_base_swa"), *outline.rope_base_swa);
  }
  if (outline.final_softcap.has_value()) {
    writer.SetFloat32(key("final_logit_softcapping"), *outline.final_softcap);
  }
  if (!outline.rope_scaling.empty()) {
    writer.SetString(key("rope.scaling.type"), outline.rope_scaling);
    writer.SetFloat32(key("rope.scaling.factor"), outline.rope_factor);
  }
  if (outline.rope_original_context > 0) {
    set("rope.scaling.original_context_length", outline.rope_original_context);
  }
  if (outline.rope_attn_factor.has_value()) {
    writer.SetFloat32(key("rope.scaling.attn_factor"), *outline.rope_attn_factor);
  }
}

namespace {

// The tensors of one block, appended.
class BlockTensors {
 public:
  BlockTensors(const ModelOutline& outline, int64_t layer, std::vector<OutlineTensor>& out)
      : outline_(outline),
        family_(*outline.family),
        block_(absl::StrCat("blk.", layer, ".")),
        hf_block_(absl::StrCat("model.layers.", layer, ".")),
        out_(out) {}

  void AppendAttention() {
    const int64_t q = outline_.heads * outline_.head_dim;
    const int64_t kv = outline_.kv_heads * outline_.head_dim;
    Norm("attn_norm", "input_layernorm", outline_.hidden);
    if (family_.fuses) {
      Matrix("attn_qkv", "self_attn.qkv_proj", outline_.hidden, q + 2 * kv);
    } else {
      const auto change = [&](RowChange row_change) {
        return family_.permutes_qk ? row_change : RowChange::kNone;
      };
      Linear("attn_q", "self_attn.q_proj", q, change(RowChange::kInterleaveQ));
      Linear("attn_k", "self_attn.k_proj", kv, change(RowChange::kInterleaveK));
      Linear("attn_v", "self_attn.v_proj", kv, RowChange::kNone);
    }
    if (family_.has_qk_norm) {
      Norm("attn_q_norm", "self_attn.q_norm", outline_.head_dim);
      Norm("attn_k_norm", "self_attn.k_norm", outline_.head_dim);
    }
    Matrix("attn_output", "self_attn.o_proj", q, outline_.hidden);
  }

  void AppendFeedForward() {
    const int64_t wide = outline_.feed_forward;
    if (family_.has_post_norms) {
      Norm("post_attention_norm", "post_attention_layernorm", outline_.hidden);
      Norm("ffn_norm", "pre_feedforward_layernorm", outline_.hidden);
    } else {
      Norm("ffn_norm", "post_attention_layernorm", outline_.hidden);
    }
    if (family_.fuses) {
      Matrix("ffn_up", "mlp.gate_up_proj", outline_.hidden, 2 * wide);
    } else {
      Matrix("ffn_gate", "mlp.gate_proj", outline_.hidden, wide);
      Matrix("ffn_up", "mlp.up_proj", outline_.hidden, wide);
    }
    Matrix("ffn_down", "mlp.down_proj", wide, outline_.hidden);
    if (family_.has_post_norms) {
      Norm("post_ffw_norm", "post_feedforward_layernorm", outline_.hidden);
    }
  }

 private:
  void Add(absl::string_view name, absl::string_view hf_name, std::vector<int64_t> dims,
           RowChange change) {
    out_.push_back({absl::StrCat(block_, name, ".weight"),
                    absl::StrCat(hf_block_, hf_name, ".weight"), std::move(dims), change});
  }
  void Norm(absl::string_view name, absl::string_view hf_name, int64_t size) {
    Add(name, hf_name, {size}, family_.adds_one_to_norms ? RowChange::kPlusOne : RowChange::kNone);
  }
  void Matrix(absl::string_view name, absl::string_view hf_name, int64_t cols, int64_t rows,
              RowChange change = RowChange::kNone) {
    Add(name, hf_name, {cols, rows}, change);
  }
  // A matrix that has a bias in some families.
  void Linear(absl::string_view name, absl::string_view hf_name, int64_t rows, RowChange change) {
    Matrix(name, hf_name, outline_.hidden, rows, change);
    if (family_.has_qkv_bias) {
      OutlineTensor bias = BiasOf(out_.back());
      out_.push_back(std::move(bias));
    }
  }

  const ModelOutline& outline_;
  const FamilyLayout& family_;
  const std::string block_;
  const std::string hf_block_;
  std::vector<OutlineTensor>& out_;
};

void AppendComputed(absl::string_view name, const std::vector<float>& values,
                    std::vector<OutlineTensor>& tensors) {
  if (values.empty()) return;
  tensors.push_back(
      {std::string(name), "", {static_cast<int64_t>(values.size())}, RowChange::kNone, &values});
}

}  // namespace

OutlineTensor BiasOf(const OutlineTensor& matrix) {
  const auto bias_name = [](const std::string& weight) {
    return absl::StrCat(weight.substr(0, weight.size() - std::string("weight").size()), "bias");
  };
  return {bias_name(matrix.name), bias_name(matrix.hf_name), {matrix.dims[1]}, matrix.change};
}

std::vector<OutlineTensor> OutlineTensors(const ModelOutline& outline) {
  std::vector<OutlineTensor> tensors;
  AppendComputed("rope_freqs.weight", outline.rope_freqs, tensors);
  AppendComputed("rope_factors_long.weight", outline.rope_long, tensors);
  AppendComputed("rope_factors_short.weight", outline.rope_short, tensors);
  tensors.push_back({"token_embd.weight",
                     "model.embed_tokens.weight",
                     {outline.hidden, outline.vocabulary},
                     RowChange::kNone});
  for (int64_t layer = 0; layer < outline.layers; ++layer) {
    BlockTensors block(outline, layer, tensors);
    block.AppendAttention();
    block.AppendFeedForward();
  }
  tensors.push_back({"output_norm.weight",
                     "model.norm.weight",
                     {outline.hidden},
                     outline.family->adds_one_to_norms ? RowChange::kPlusOne : RowChange::kNone});
  if (!outline.tied) {
    tensors.push_back({"output.weight",
                       "lm_head.weight",
                       {outline.hidden, outline.vocabulary},
                       RowChange::kNone});
  }
  return tensors;
}

uint32_t GgufFileType(DType type) {
  switch (type) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ4_1:
      return 3;
    case DType::kQ8_0:
      return 7;
    case DType::kQ5_0:
      return 8;
    case DType::kQ5_1:
      return 9;
    case DType::kQ4_K:
      return 14;
    case DType::kQ5_K:
      return 16;
    case DType::kQ6_K:
      return 18;
    case DType::kBF16:
      return 32;
  }
  return 0;
}

}  // namespace fedge
