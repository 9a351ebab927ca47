#include "tests/testing/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/env.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/tensor/quantize.h"

namespace fedge::testing {
namespace {

constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUnused = 5, kByte = 6;

struct Vocabulary {
  std::vector<std::string> pieces;
  std::vector<float> scores;
  std::vector<int32_t> types;

  void Add(std::string piece, float score, int32_t type) {
    pieces.push_back(std::move(piece));
    scores.push_back(score);
    types.push_back(type);
  }
};

Vocabulary MakeVocabulary(int64_t size) {
  Vocabulary vocabulary;
  vocabulary.Add("<unk>", 0, kUnknown);
  vocabulary.Add("<s>", 0, kControl);
  vocabulary.Add("</s>", 0, kControl);
  for (int i = 0; i < 256; ++i) vocabulary.Add(absl::StrFormat("<0x%02X>", i), 0, kByte);
  // Each longer piece can be merged from two shorter ones, as SentencePiece needs it.
  float score = -1;
  for (const char* piece :
       {"▁t",   "he", "▁the", "▁a", "in",  "er",  "an",  "re", "on", "▁s", "▁w",  "nd",
        "▁and", "is", "ou",   "▁o", "▁of", "▁to", "ing", "es", "en", "or", "▁is", "▁in"}) {
    vocabulary.Add(piece, score, kNormal);
    score -= 1;
  }
  for (const char* piece : {"▁", ".", ",", "!", "?", "0", "1", "2", "3", "4", "5"}) {
    vocabulary.Add(piece, score -= 1, kNormal);
  }
  for (char c = 'a'; c <= 'z'; ++c) vocabulary.Add(std::string(1, c), score -= 1, kNormal);
  FEDGE_CHECK(static_cast<int64_t>(vocabulary.pieces.size()) == kTinyVocabularySize,
              vocabulary.pieces.size());
  FEDGE_CHECK(size >= kTinyVocabularySize, "vocab_size ", size);
  for (int64_t i = kTinyVocabularySize; i < size; ++i) {
    vocabulary.Add(absl::StrCat("<unused", i, ">"), -1000, kUnused);
  }
  return vocabulary;
}

class TinyModelMaker {
 public:
  explicit TinyModelMaker(const TinyModelOptions& options) : options_(options) {}

  std::string Make() {
    SetMetadata();
    AddTensors();
    if (options_.extra) options_.extra(writer_);
    return writer_.Serialize();
  }

 private:
  int64_t head_dim() const {
    return options_.head_dim != 0 ? options_.head_dim
                                  : options_.embedding_length / options_.head_count;
  }

  int64_t rope_dim() const { return options_.rope_dim != 0 ? options_.rope_dim : head_dim(); }
  bool Is(absl::string_view architecture) const { return options_.architecture == architecture; }

  void SetSize(absl::string_view key, int64_t value) {
    writer_.SetUint32(absl::StrCat(options_.architecture, ".", key), static_cast<uint32_t>(value));
  }

  void SetMetadata() {
    writer_.SetString("general.architecture", options_.architecture);
    writer_.SetString("general.name", "tiny");
    SetSize("context_length", options_.context_length);
    SetSize("embedding_length", options_.embedding_length);
    SetSize("block_count", options_.block_count);
    SetSize("feed_forward_length", options_.feed_forward_length);
    SetSize("attention.head_count", options_.head_count);
    SetSize("attention.head_count_kv", options_.head_count_kv);
    SetSize("attention.key_length", head_dim());
    SetSize("attention.value_length", head_dim());
    SetSize("rope.dimension_count", rope_dim());
    if (options_.sliding_window != 0) SetSize("attention.sliding_window", options_.sliding_window);
    writer_.SetFloat32(absl::StrCat(options_.architecture, ".attention.layer_norm_rms_epsilon"),
                       1e-5f);
    writer_.SetFloat32(absl::StrCat(options_.architecture, ".rope.freq_base"), 10000);
    const Vocabulary vocabulary = MakeVocabulary(options_.vocab_size);
    writer_.SetString("tokenizer.ggml.model", "llama");
    writer_.SetStrings("tokenizer.ggml.tokens", vocabulary.pieces);
    writer_.SetFloat32s("tokenizer.ggml.scores", vocabulary.scores);
    writer_.SetInt32s("tokenizer.ggml.token_type", vocabulary.types);
    writer_.SetUint32("tokenizer.ggml.bos_token_id", 1);
    writer_.SetUint32("tokenizer.ggml.eos_token_id", 2);
    writer_.SetUint32("tokenizer.ggml.unknown_token_id", 0);
    writer_.SetBool("tokenizer.ggml.add_bos_token", true);
    writer_.SetBool("tokenizer.ggml.add_eos_token", false);
  }

  // Each tensor draws from its own stream, so leaving one out does not change the others.
  std::vector<float> Values(const std::string& name, int64_t count, double mean, double deviation) {
    Rng rng = Rng::Stream(options_.seed, name);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(mean + deviation * rng.Normal());
    return values;
  }

  void Add(const std::string& name, DType type, std::vector<int64_t> dims,
           const std::vector<float>& values) {
    const auto& omit = options_.omit_tensors;
    if (std::find(omit.begin(), omit.end(), name) != omit.end()) return;
    std::string data(static_cast<size_t>(RowBytes(type, static_cast<int64_t>(values.size()))), 0);
    if (type == DType::kF32) {
      std::memcpy(data.data(), values.data(), data.size());
    } else {
      const absl::Status status = Quantize(type, values, reinterpret_cast<uint8_t*>(data.data()));
      FEDGE_CHECK(status.ok(), status.ToString());
    }
    writer_.AddTensor(name, type, std::move(dims), std::move(data));
  }

  void AddMatrix(const std::string& name, int64_t rows, int64_t cols, double deviation) {
    Add(name, options_.dtype, {cols, rows}, Values(name, rows * cols, 0, deviation));
  }

  void AddNorm(const std::string& name, int64_t size) {
    Add(name, DType::kF32, {size}, Values(name, size, 1, 0.1));
  }

  // A linear of a block and, where it has one, its bias.
  void AddLinear(const std::string& name, int64_t rows, int64_t cols, bool bias) {
    AddMatrix(name + ".weight", rows, cols, 1 / std::sqrt(static_cast<double>(cols)));
    if (!bias && !options_.biases) return;
    Add(name + ".bias", DType::kF32, {rows}, Values(name + ".bias", rows, 0, 0.3));
  }

  void AddAttention(const std::string& block) {
    const int64_t channels = options_.embedding_length;
    const int64_t q_rows = options_.head_count * head_dim();
    const int64_t kv_rows = options_.head_count_kv * head_dim();
    AddNorm(block + "attn_norm.weight", channels);
    if (Is("phi3") || options_.fused_qkv) {
      AddLinear(block + "attn_qkv", q_rows + 2 * kv_rows, channels, Is("qwen2"));
    } else {
      AddLinear(block + "attn_q", q_rows, channels, Is("qwen2"));
      AddLinear(block + "attn_k", kv_rows, channels, Is("qwen2"));
      AddLinear(block + "attn_v", kv_rows, channels, Is("qwen2"));
    }
    AddLinear(block + "attn_output", channels, q_rows, false);
    if (Is("qwen3") || Is("gemma3")) {
      AddNorm(block + "attn_q_norm.weight", head_dim());
      AddNorm(block + "attn_k_norm.weight", head_dim());
    }
    if (Is("gemma3")) AddNorm(block + "post_attention_norm.weight", channels);
  }

  void AddFeedForward(const std::string& block) {
    const int64_t channels = options_.embedding_length;
    const int64_t hidden = options_.feed_forward_length;
    AddNorm(block + "ffn_norm.weight", channels);
    if (Is("phi3")) {
      AddLinear(block + "ffn_up", 2 * hidden, channels, false);
    } else {
      AddLinear(block + "ffn_gate", hidden, channels, false);
      AddLinear(block + "ffn_up", hidden, channels, false);
    }
    AddLinear(block + "ffn_down", channels, hidden, false);
    if (Is("gemma3")) AddNorm(block + "post_ffw_norm.weight", channels);
  }

  void AddRopeFactors(const std::string& name, float first) {
    std::vector<float> factors(static_cast<size_t>(rope_dim() / 2));
    for (size_t i = 0; i < factors.size(); ++i) factors[i] = first + static_cast<float>(i);
    Add(name, DType::kF32, {rope_dim() / 2}, factors);
  }

  void AddTensors() {
    const int64_t channels = options_.embedding_length;
    AddMatrix("token_embd.weight", options_.vocab_size, channels, 0.5);
    for (int64_t i = 0; i < options_.block_count; ++i) {
      AddAttention(absl::StrCat("blk.", i, "."));
      AddFeedForward(absl::StrCat("blk.", i, "."));
    }
    AddNorm("output_norm.weight", channels);
    if (!options_.tied_output) AddMatrix("output.weight", options_.vocab_size, channels, 0.5);
    if (options_.biases) {
      Add("output.bias", DType::kF32, {options_.vocab_size},
          Values("output.bias", options_.vocab_size, 0, 0.3));
    }
    if (!options_.rope_frequency_factors) return;
    if (Is("phi3")) {
      AddRopeFactors("rope_factors_long.weight", 2);
      AddRopeFactors("rope_factors_short.weight", 1);
    } else {
      AddRopeFactors("rope_freqs.weight", 1);
    }
  }

  const TinyModelOptions& options_;
  GgufWriter writer_;
};

}  // namespace

std::string MakeTinyModelGguf(const TinyModelOptions& options) {
  return TinyModelMaker(options).Make();
}

std::string WriteTinyModel(absl::string_view dir, const TinyModelOptions& options) {
  const std::string path = JoinPath(dir, "tiny.gguf");
  absl::Status status = Env::Posix()->CreateDirs(dir);
  FEDGE_CHECK(status.ok(), status.ToString());
  status = Env::Posix()->WriteFileAtomic(path, MakeTinyModelGguf(options));
  FEDGE_CHECK(status.ok(), status.ToString());
  return path;
}

}  // namespace fedge::testing
