#include "tools/pretrain/llama_weights.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/formats/gguf.h"
#include "common/formats/gguf_writer.h"
#include "common/tensor/quantize.h"
#include "tools/prepare/model_outline.h"

namespace fedge {
namespace {

constexpr int64_t kMaxDimension = 1 << 16;
constexpr double kInitialDeviation = 0.02;

struct TensorShape {
  std::string name;
  std::vector<int64_t> dims;  // ggml order: dims[0] is a row's length
};

std::vector<TensorShape> TensorShapes(const LlamaShape& shape, int64_t vocab_size) {
  const int64_t c = shape.embedding_length;
  const int64_t f = shape.feed_forward_length;
  const int64_t kv = c / shape.head_count * shape.head_count_kv;
  std::vector<TensorShape> shapes = {{"token_embd.weight", {c, vocab_size}}};
  for (int64_t layer = 0; layer < shape.block_count; ++layer) {
    const std::string block = absl::StrCat("blk.", layer, ".");
    shapes.push_back({block + "attn_norm.weight", {c}});
    shapes.push_back({block + "attn_q.weight", {c, c}});
    shapes.push_back({block + "attn_k.weight", {c, kv}});
    shapes.push_back({block + "attn_v.weight", {c, kv}});
    shapes.push_back({block + "attn_output.weight", {c, c}});
    shapes.push_back({block + "ffn_norm.weight", {c}});
    shapes.push_back({block + "ffn_gate.weight", {c, f}});
    shapes.push_back({block + "ffn_up.weight", {c, f}});
    shapes.push_back({block + "ffn_down.weight", {f, c}});
  }
  shapes.push_back({"output_norm.weight", {c}});
  return shapes;
}

void WriteLabels(const ModelLabels& labels, DType type, GgufWriter& writer) {
  writer.SetString("general.architecture", "llama");
  writer.SetString("general.type", "model");
  if (!labels.name.empty()) writer.SetString("general.name", labels.name);
  if (!labels.description.empty()) writer.SetString("general.description", labels.description);
  if (!labels.license.empty()) writer.SetString("general.license", labels.license);
  writer.SetUint32("general.file_type", GgufFileType(type));
  writer.SetUint32("general.quantization_version", kGgufQuantizationVersion);
}

void WriteShape(const LlamaShape& shape, size_t vocab_size, GgufWriter& writer) {
  const auto set = [&writer](absl::string_view key, int64_t value) {
    writer.SetUint32(absl::StrCat("llama.", key), static_cast<uint32_t>(value));
  };
  set("vocab_size", static_cast<int64_t>(vocab_size));
  set("context_length", shape.context_length);
  set("embedding_length", shape.embedding_length);
  set("block_count", shape.block_count);
  set("feed_forward_length", shape.feed_forward_length);
  set("attention.head_count", shape.head_count);
  set("attention.head_count_kv", shape.head_count_kv);
  set("rope.dimension_count", shape.embedding_length / shape.head_count);
  writer.SetFloat32("llama.attention.layer_norm_rms_epsilon", shape.rms_epsilon);
  writer.SetFloat32("llama.rope.freq_base", shape.rope_freq_base);
}

void WriteVocabulary(const SentencePieceVocab& vocab, GgufWriter& writer) {
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;
  for (const SentencePiece& piece : vocab.pieces) {
    tokens.push_back(piece.text);
    scores.push_back(piece.score);
    types.push_back(static_cast<int32_t>(piece.type));
  }
  writer.SetString("tokenizer.ggml.model", "llama");
  writer.SetString("tokenizer.ggml.pre", "default");
  writer.SetStrings("tokenizer.ggml.tokens", tokens);
  writer.SetFloat32s("tokenizer.ggml.scores", scores);
  writer.SetInt32s("tokenizer.ggml.token_type", types);
  writer.SetUint32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(vocab.bos_id));
  writer.SetUint32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(vocab.eos_id));
  writer.SetUint32("tokenizer.ggml.unknown_token_id", static_cast<uint32_t>(vocab.unk_id));
  if (vocab.pad_id >= 0) {
    writer.SetUint32("tokenizer.ggml.padding_token_id", static_cast<uint32_t>(vocab.pad_id));
  }
  writer.SetBool("tokenizer.ggml.add_bos_token", true);
  writer.SetBool("tokenizer.ggml.add_eos_token", false);
  writer.SetBool("tokenizer.ggml.add_space_prefix", vocab.add_dummy_prefix);
}

// The initial values of a tensor, each tensor from a random stream of its own.
void Initialize(absl::string_view name, bool matrix, int64_t block_count, uint64_t seed,
                absl::Span<float> values) {
  if (!matrix) {
    for (float& value : values) value = 1.0f;
    return;
  }
  const bool residual =
      absl::StrContains(name, "attn_output") || absl::StrContains(name, "ffn_down");
  const double deviation =
      residual ? kInitialDeviation / std::sqrt(2.0 * static_cast<double>(block_count))
               : kInitialDeviation;
  Rng rng = Rng::Stream(seed, absl::StrCat("weights ", name));
  for (float& value : values) value = static_cast<float>(deviation * rng.Normal());
}

}  // namespace

absl::Status CheckLlama(const LlamaShape& shape, const SentencePieceVocab& vocab) {
  const std::pair<absl::string_view, int64_t> dimensions[] = {
      {"hidden size", shape.embedding_length}, {"number of layers", shape.block_count},
      {"number of heads", shape.head_count},   {"number of key/value heads", shape.head_count_kv},
      {"ffn size", shape.feed_forward_length}, {"context length", shape.context_length},
  };
  for (const auto& [name, value] : dimensions) {
    if (value < 1 || value > kMaxDimension) {
      return absl::InvalidArgumentError(
          absl::StrCat("a ", name, " of ", value, " is not within 1 and ", kMaxDimension));
    }
  }
  if (shape.embedding_length % (2 * shape.head_count) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("hidden size ", shape.embedding_length, " over ",
                                                   shape.head_count,
                                                   " heads is not a whole, even head size"));
  }
  if (shape.head_count % shape.head_count_kv != 0) {
    return absl::InvalidArgumentError(absl::StrCat(shape.head_count,
                                                   " heads are not a multiple of ",
                                                   shape.head_count_kv, " key/value heads"));
  }
  if (vocab.model_type != SentencePieceVocab::ModelType::kBpe) {
    return absl::InvalidArgumentError(
        "the SentencePiece model is not of type BPE; train it with --model_type=bpe");
  }
  if (vocab.unk_id < 0 || vocab.bos_id < 0 || vocab.eos_id < 0) {
    return absl::InvalidArgumentError(
        "the SentencePiece model lacks an unknown, a begin or an end piece; train it with "
        "--unk_id=0 --bos_id=1 --eos_id=2");
  }
  int64_t byte_pieces = 0;
  for (const SentencePiece& piece : vocab.pieces) {
    if (piece.type == SentencePieceType::kByte) ++byte_pieces;
  }
  if (byte_pieces != 256) {
    return absl::InvalidArgumentError(absl::StrCat("the SentencePiece model has ", byte_pieces,
                                                   " of 256 byte pieces; train it with "
                                                   "--byte_fallback=true"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LlamaWeights>> LlamaWeights::Create(const LlamaShape& shape,
                                                                   const SentencePieceVocab& vocab,
                                                                   const ModelLabels& labels,
                                                                   uint64_t seed) {
  RETURN_IF_ERROR(CheckLlama(shape, vocab));
  std::unique_ptr<LlamaWeights> weights(new LlamaWeights());
  weights->shape_ = shape;
  weights->vocab_ = vocab;
  weights->labels_ = labels;

  GgufWriter writer;
  WriteLabels(labels, DType::kF32, writer);
  WriteShape(shape, vocab.pieces.size(), writer);
  WriteVocabulary(vocab, writer);
  for (TensorShape& tensor : TensorShapes(shape, static_cast<int64_t>(vocab.pieces.size()))) {
    size_t elements = 1;
    for (const int64_t dim : tensor.dims) elements *= static_cast<size_t>(dim);
    writer.AddTensor(tensor.name, DType::kF32, std::move(tensor.dims),
                     std::string(elements * sizeof(float), '\0'));
  }
  const std::string bytes = writer.Serialize();
  weights->buffer_.resize((bytes.size() + sizeof(Line) - 1) / sizeof(Line));
  char* const start = weights->buffer_.front().bytes;
  std::memcpy(start, bytes.data(), bytes.size());

  ASSIGN_OR_RETURN(std::shared_ptr<const GgufFile> file,
                   GgufFile::Parse(absl::string_view(start, bytes.size()), "new model"));
  for (const GgufTensor& tensor : file->tensors()) {
    char* const data = start + (tensor.data.data() - start);
    weights->values_.emplace_back(reinterpret_cast<float*>(data),
                                  tensor.data.size() / sizeof(float));
    Initialize(tensor.name, tensor.dims.size() > 1, shape.block_count, seed,
               weights->values_.back());
  }
  ASSIGN_OR_RETURN(weights->model_, BaseModel::FromGguf(std::move(file)));
  return weights;
}

bool LlamaWeights::is_matrix(size_t tensor) const {
  return model_->file().tensors()[tensor].dims.size() > 1;
}

int64_t LlamaWeights::num_parameters() const {
  size_t total = 0;
  for (const absl::Span<float> values : values_) total += values.size();
  return static_cast<int64_t>(total);
}

absl::StatusOr<std::string> LlamaWeights::Export(DType type) const {
  GgufWriter writer;
  WriteLabels(labels_, type, writer);
  WriteShape(shape_, vocab_.pieces.size(), writer);
  WriteVocabulary(vocab_, writer);
  for (size_t i = 0; i < values_.size(); ++i) {
    const GgufTensor& tensor = model_->file().tensors()[i];
    const bool whole_blocks = tensor.dims[0] % BlockElements(type) == 0;
    const DType stored = is_matrix(i) && whole_blocks ? type : DType::kF32;
    const int64_t rows = tensor.num_elements() / tensor.dims[0];
    std::string data(static_cast<size_t>(RowBytes(stored, tensor.dims[0]) * rows), '\0');
    if (stored == DType::kF32) {
      std::memcpy(data.data(), values_[i].data(), data.size());
    } else {
      RETURN_IF_ERROR(Quantize(stored, values_[i], reinterpret_cast<uint8_t*>(data.data())));
    }
    writer.AddTensor(tensor.name, stored, tensor.dims, std::move(data));
  }
  return writer.Serialize();
}

}  // namespace fedge
