// Writes a GGUF model as the Hugging Face folder it could have come from: the inverse of
// ImportModel in code of its own, after the formats' descriptions.
#ifndef FEDGE_TESTS_TOOLS_PREPARE_HF_FOLDER_H_
#define FEDGE_TESTS_TOOLS_PREPARE_HF_FOLDER_H_

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/base/env.h"
#include "common/formats/gguf.h"
#include "common/formats/safetensors.h"
#include "common/tensor/quantize.h"

namespace fedge::testing {

using Json = nlohmann::ordered_json;

inline std::vector<float> ValuesOf(const GgufTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  Dequantize(tensor.type, reinterpret_cast<const uint8_t*>(tensor.data.data()),
             tensor.num_elements(), values.data());
  return values;
}

class HfFolder {
 public:
  explicit HfFolder(const GgufFile& file)
      : file_(file), arch_(*file.GetString("general.architecture")) {
    MakeConfig();
    MakeTokenizer();
    MakeTensors();
  }

  Json config, tokenizer, settings;  // config.json, tokenizer.json, tokenizer_config.json
  std::vector<SafetensorsEntry> tensors;

  // Tensors go to `shards` files, with an index when there is more than one.
  void Write(const std::string& dir, size_t shards = 1) const {
    Env& env = *Env::Posix();
    ASSERT_TRUE(env.CreateDirs(dir).ok());
    WriteText(dir + "/config.json", config.dump());
    if (!tokenizer.is_null()) WriteText(dir + "/tokenizer.json", tokenizer.dump());
    WriteText(dir + "/tokenizer_config.json", settings.dump());
    if (shards == 1) {
      WriteText(dir + "/model.safetensors", SerializeSafetensors(tensors, {{"format", "pt"}}));
      return;
    }
    Json map;
    for (size_t shard = 0; shard < shards; ++shard) {
      const std::string name = absl::StrCat("model-0000", shard + 1, ".safetensors");
      std::vector<SafetensorsEntry> part;
      for (size_t i = shard; i < tensors.size(); i += shards) {
        part.push_back(tensors[i]);
        map[tensors[i].name] = name;
      }
      WriteText(absl::StrCat(dir, "/", name), SerializeSafetensors(part, {}));
    }
    WriteText(dir + "/model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  }

  SafetensorsEntry& tensor(absl::string_view name) {
    for (SafetensorsEntry& entry : tensors) {
      if (entry.name == name) return entry;
    }
    ADD_FAILURE() << "no tensor " << name;
    return tensors.front();
  }

 private:
  static void WriteText(const std::string& path, const std::string& text) {
    ASSERT_TRUE(Env::Posix()->WriteFileAtomic(path, text).ok());
  }
  bool Has(absl::string_view key) const { return file_.Find(absl::StrCat(arch_, ".", key)); }
  uint64_t Int(absl::string_view key) const {
    return *file_.GetUint(absl::StrCat(arch_, ".", key));
  }
  double Float(absl::string_view key) const {
    return *file_.GetFloat(absl::StrCat(arch_, ".", key));
  }

  void MakeConfig() {
    const std::map<std::string, std::string> classes = {{"llama", "LlamaForCausalLM"},
                                                        {"qwen2", "Qwen2ForCausalLM"},
                                                        {"qwen3", "Qwen3ForCausalLM"},
                                                        {"gemma3", "Gemma3ForCausalLM"},
                                                        {"phi3", "Phi3ForCausalLM"}};
    config["architectures"] = {classes.at(arch_)};
    config["hidden_size"] = Int("embedding_length");
    config["num_hidden_layers"] = Int("block_count");
    config["num_attention_heads"] = Int("attention.head_count");
    config["num_key_value_heads"] = Int("attention.head_count_kv");
    config["intermediate_size"] = Int("feed_forward_length");
    config["vocab_size"] = Int("vocab_size");
    config["max_position_embeddings"] = Int("context_length");
    config["rms_norm_eps"] = Float("attention.layer_norm_rms_epsilon");
    config["rope_theta"] = Float("rope.freq_base");
    config["tie_word_embeddings"] = file_.FindTensor("output.weight") == nullptr;
    head_dim_ = Has("attention.key_length")
                    ? static_cast<int64_t>(Int("attention.key_length"))
                    : static_cast<int64_t>(Int("embedding_length") / Int("attention.head_count"));
    if (Has("attention.key_length")) config["head_dim"] = head_dim_;
    config["hidden_act"] = "silu";
    if (arch_ == "gemma3") {
      config["hidden_activation"] = "gelu_pytorch_tanh";
      if (Has("attention.sliding_window")) {
        config["sliding_window"] = Int("attention.sliding_window");
      }
    }
    if (file_.FindTensor("rope_freqs.weight") != nullptr) {
      config["rope_scaling"] = {{"rope_type", "llama3"},
                                {"factor", 8.0},
                                {"low_freq_factor", 1.0},
                                {"high_freq_factor", 4.0},
                                {"original_max_position_embeddings", 8192}};
    }
    if (arch_ == "phi3") MakePhi3Rope();
  }

  void MakePhi3Rope() {
    config["partial_rotary_factor"] =
        static_cast<double>(Int("rope.dimension_count")) / static_cast<double>(head_dim_);
    config["sliding_window"] = nullptr;
    if (file_.FindTensor("rope_factors_long.weight") == nullptr) return;
    config["original_max_position_embeddings"] = Int("rope.scaling.original_context_length");
    config["rope_scaling"] = {
        {"type", "longrope"},
        {"long_factor", ValuesOf(*file_.FindTensor("rope_factors_long.weight"))},
        {"short_factor", ValuesOf(*file_.FindTensor("rope_factors_short.weight"))}};
  }

  void MakeTokenizer() {
    const auto pieces = file_.Find("tokenizer.ggml.tokens")->AsStrings().value();
    const auto types = file_.Find("tokenizer.ggml.token_type")->AsInts().value();
    const bool byte_level = *file_.GetString("tokenizer.ggml.model") == "gpt2";
    Json vocabulary = Json::object();
    Json added = Json::array();
    for (size_t id = 0; id < pieces.size(); ++id) {
      const std::string piece(pieces[id]);
      if (types[id] == 3 || types[id] == 2) {
        added.push_back({{"id", id}, {"content", piece}, {"special", true}});
      }
      if (types[id] != 3 || !byte_level) vocabulary[piece] = id;
    }
    tokenizer["added_tokens"] = added;
    tokenizer["model"] = {{"type", "BPE"}, {"vocab", vocabulary}};
    if (byte_level) {
      tokenizer["model"]["merges"] = Json::array();
      const auto merges = file_.Find("tokenizer.ggml.merges")->AsStrings().value();
      for (const absl::string_view merge : merges) {
        tokenizer["model"]["merges"].push_back(std::string(merge));
      }
      tokenizer["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
    }
    const auto name_token = [&](const char* name, const char* key) {
      const GgufValue* const id = file_.Find(absl::StrCat("tokenizer.ggml.", key));
      if (id != nullptr) settings[name] = std::string(pieces[*id->AsUint()]);
    };
    name_token("bos_token", "bos_token_id");
    name_token("eos_token", "eos_token_id");
    name_token("unk_token", "unknown_token_id");
    settings["add_bos_token"] = *file_.GetBoolOr("tokenizer.ggml.add_bos_token", false);
    const std::string chat(*file_.GetStringOr("tokenizer.chat_template", ""));
    if (!chat.empty()) settings["chat_template"] = chat;
  }

  std::string HfName(absl::string_view name) const {
    std::map<std::string, std::string> stems = {{"token_embd", "model.embed_tokens"},
                                                {"output_norm", "model.norm"},
                                                {"output", "lm_head"},
                                                {"attn_norm", "input_layernorm"},
                                                {"attn_q", "self_attn.q_proj"},
                                                {"attn_k", "self_attn.k_proj"},
                                                {"attn_v", "self_attn.v_proj"},
                                                {"attn_qkv", "self_attn.qkv_proj"},
                                                {"attn_output", "self_attn.o_proj"},
                                                {"attn_q_norm", "self_attn.q_norm"},
                                                {"attn_k_norm", "self_attn.k_norm"},
                                                {"post_attention_norm", "post_attention_layernorm"},
                                                {"ffn_norm", "post_attention_layernorm"},
                                                {"post_ffw_norm", "post_feedforward_layernorm"},
                                                {"ffn_gate", "mlp.gate_proj"},
                                                {"ffn_up", "mlp.up_proj"},
                                                {"ffn_down", "mlp.down_proj"}};
    if (arch_ == "gemma3") stems["ffn_norm"] = "pre_feedforward_layernorm";
    if (arch_ == "phi3") stems["ffn_up"] = "mlp.gate_up_proj";
    std::string prefix;
    if (absl::StartsWith(name, "blk.")) {
      const size_t dot = name.find('.', 4);
      prefix = absl::StrCat("model.layers.", name.substr(4, dot - 4), ".");
      name.remove_prefix(dot + 1);
    }
    const size_t dot = name.rfind('.');
    return absl::StrCat(prefix, stems.at(std::string(name.substr(0, dot))), name.substr(dot));
  }

  void MakeTensors() {
    for (const GgufTensor& tensor : file_.tensors()) {
      if (absl::StartsWith(tensor.name, "rope_")) continue;
      std::vector<float> values = ValuesOf(tensor);
      if (arch_ == "gemma3" && absl::StrContains(tensor.name, "norm")) {
        for (float& value : values) value -= 1.0f;
      }
      if (arch_ == "llama" && (absl::StrContains(tensor.name, "attn_q.") ||
                               absl::StrContains(tensor.name, "attn_k."))) {
        values = HalvesTogether(values, tensor.dims.size() > 1 ? tensor.dims[0] : 1);
      }
      tensors.push_back({HfName(tensor.name),
                         std::vector<int64_t>(tensor.dims.rbegin(), tensor.dims.rend()),
                         std::move(values)});
    }
  }

  // Within each head, even rows first, then odd ones.
  std::vector<float> HalvesTogether(const std::vector<float>& values, int64_t cols) const {
    std::vector<float> result;
    const auto rows = static_cast<int64_t>(values.size()) / cols;
    for (int64_t head = 0; head < rows / head_dim_; ++head) {
      for (int64_t parity = 0; parity < 2; ++parity) {
        for (int64_t row = parity; row < head_dim_; row += 2) {
          const auto begin = values.begin() + (head * head_dim_ + row) * cols;
          result.insert(result.end(), begin, begin + cols);
        }
      }
    }
    return result;
  }

  const GgufFile& file_;
  const std::string arch_;
  int64_t head_dim_ = 0;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TOOLS_PREPARE_HF_FOLDER_H_
