#include "common/model/base_model.h"

#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

std::string ShapeText(int64_t rows, int64_t cols) {
  return absl::StrCat("[", rows, ", ", cols, "]");
}

// Old files carry attn_rot_embd, which llama.cpp ignores too; tensors of other parts of a model (a
// vision tower) do not touch the text.
bool ChangesTheText(absl::string_view name) {
  if (absl::EndsWith(name, ".attn_rot_embd")) return false;
  for (const absl::string_view prefix :
       {"blk.", "output", "token_", "rope_", "position_", "per_layer_", "altup_", "cls"}) {
    if (absl::StartsWith(name, prefix)) return true;
  }
  return false;
}

}  // namespace

// Reads one file. Messages begin with the file's path.
class BaseModelLoader {
 public:
  explicit BaseModelLoader(std::shared_ptr<const GgufFile> file) : file_(std::move(file)) {}

  absl::StatusOr<std::shared_ptr<const BaseModel>> Load() {
    model_ = std::shared_ptr<BaseModel>(new BaseModel());
    model_->file_ = file_;
    ASSIGN_OR_RETURN(model_->config_, ReadModelConfig(*file_));
    RETURN_IF_ERROR(ReadRope());
    ASSIGN_OR_RETURN(model_->tokenizer_, Tokenizer::FromGguf(*file_));
    RETURN_IF_ERROR(ReadEmbeddings());
    for (int64_t i = 0; i < config().block_count; ++i) RETURN_IF_ERROR(ReadLayer(i));
    RETURN_IF_ERROR(RejectUnreadTensors());
    return std::shared_ptr<const BaseModel>(std::move(model_));
  }

 private:
  ModelConfig& config() { return model_->config_; }

  template <typename... Parts>
  absl::Status Invalid(const Parts&... parts) const {
    return absl::InvalidArgumentError(absl::StrCat(file_->path(), ": ", parts...));
  }

  bool Has(absl::string_view name) const { return file_->FindTensor(name) != nullptr; }

  absl::StatusOr<WeightMatrix> ReadMatrix(absl::string_view name, int64_t rows, int64_t cols) {
    const GgufTensor* const tensor = file_->FindTensor(name);
    if (tensor == nullptr) return Invalid("tensor ", name, " is missing");
    const absl::StatusOr<WeightMatrix> matrix = tensor->AsMatrix();
    if (!matrix.ok()) return Annotate(matrix.status(), file_->path());
    if (matrix->rows != rows || matrix->cols != cols) {
      return Invalid("tensor ", name, " has shape ", ShapeText(matrix->rows, matrix->cols),
                     ", expected ", ShapeText(rows, cols));
    }
    read_.insert(tensor->name);
    return *matrix;
  }

  // A vector as F32: in place where the file allows it.
  absl::StatusOr<const float*> ReadVector(absl::string_view name, int64_t size) {
    ASSIGN_OR_RETURN(const WeightMatrix row, ReadMatrix(name, 1, size));
    if (row.type == DType::kF32 && reinterpret_cast<uintptr_t>(row.data) % alignof(float) == 0) {
      return reinterpret_cast<const float*>(row.data);
    }
    std::vector<float> values(static_cast<size_t>(size));
    Dequantize(row.type, row.data, size, values.data());
    model_->owned_.push_back(std::move(values));
    return model_->owned_.back().data();
  }

  // What divides the frequencies; empty when the file has no such tensor.
  absl::StatusOr<std::vector<float>> ReadRopeFactors(absl::string_view name) {
    std::vector<float> factors;
    if (!Has(name)) return factors;
    const int64_t pairs = config().rope_dim / 2;
    ASSIGN_OR_RETURN(const float* const values, ReadVector(name, pairs));
    factors.assign(values, values + pairs);
    for (size_t i = 0; i < factors.size(); ++i) {
      if (factors[i] > 0 && std::isfinite(factors[i])) continue;
      return Invalid("tensor ", name, ": value ", i, " is ", factors[i], "; it must be positive");
    }
    return factors;
  }

  absl::Status ReadRope() {
    const ModelConfig& c = config();
    std::vector<float> usual, beyond;
    if (c.family->rope_freqs) {
      ASSIGN_OR_RETURN(usual, ReadRopeFactors(kRopeFreqsTensor));
    }
    if (c.family->rope_factors && usual.empty()) {
      ASSIGN_OR_RETURN(usual, ReadRopeFactors(kRopeShortTensor));
      ASSIGN_OR_RETURN(beyond, ReadRopeFactors(kRopeLongTensor));
      if (usual.empty() != beyond.empty()) {
        return Invalid("tensor ", usual.empty() ? kRopeShortTensor : kRopeLongTensor,
                       " is missing beside ", usual.empty() ? kRopeLongTensor : kRopeShortTensor);
      }
    }
    model_->long_rope_ = !beyond.empty();
    model_->rope_[kGlobalRope] = MakeRopeFrequencies(c.rope, c.rope_dim, usual);
    model_->rope_[kLongRope] = MakeRopeFrequencies(c.rope, c.rope_dim, beyond);
    model_->rope_[kLocalRope] = MakeRopeFrequencies(c.local_rope, c.rope_dim, {});
    return absl::OkStatus();
  }

  absl::Status ReadEmbeddings() {
    ModelConfig& c = config();
    c.vocab_size = model_->tokenizer_->vocab_size();
    ASSIGN_OR_RETURN(model_->token_embedding_,
                     ReadMatrix("token_embd.weight", c.vocab_size, c.embedding_length));
    ASSIGN_OR_RETURN(model_->output_norm_, ReadVector("output_norm.weight", c.embedding_length));
    model_->tied_output_ = !Has("output.weight");
    model_->output_ = model_->token_embedding_;
    if (!model_->tied_output_) {
      ASSIGN_OR_RETURN(model_->output_,
                       ReadMatrix("output.weight", c.vocab_size, c.embedding_length));
    }
    if (Has("output.bias")) {
      ASSIGN_OR_RETURN(model_->output_bias_, ReadVector("output.bias", c.vocab_size));
    }
    return absl::OkStatus();
  }

  // A linear and the bias that the file may have for it.
  absl::Status ReadLinear(int64_t layer, LinearIndex index, int64_t rows, int64_t cols,
                          bool needs_bias, LayerWeights* weights) {
    ASSIGN_OR_RETURN(weights->linear[index],
                     ReadMatrix(LinearTensorName(layer, index), rows, cols));
    const std::string bias = LinearBiasName(layer, index);
    if (!needs_bias && !Has(bias)) return absl::OkStatus();
    ASSIGN_OR_RETURN(weights->bias[index], ReadVector(bias, rows));
    return absl::OkStatus();
  }

  absl::Status ReadAttention(int64_t i, LayerWeights* layer) {
    const ModelConfig& c = config();
    const int64_t channels = c.embedding_length;
    const int64_t q_rows = c.head_count * c.head_dim;
    const int64_t kv_rows = c.head_count_kv * c.head_dim;
    const bool bias = c.family->qkv_bias;
    if (Has(LinearTensorName(i, kQkv))) {
      RETURN_IF_ERROR(ReadLinear(i, kQkv, q_rows + 2 * kv_rows, channels, bias, layer));
    } else {
      RETURN_IF_ERROR(ReadLinear(i, kQ, q_rows, channels, bias, layer));
      RETURN_IF_ERROR(ReadLinear(i, kK, kv_rows, channels, bias, layer));
      RETURN_IF_ERROR(ReadLinear(i, kV, kv_rows, channels, bias, layer));
    }
    return ReadLinear(i, kO, channels, q_rows, false, layer);
  }

  absl::Status ReadFeedForward(int64_t i, LayerWeights* layer) {
    const int64_t channels = config().embedding_length;
    const int64_t hidden = config().feed_forward_length;
    if (config().family->fused_gate_up && !Has(LinearTensorName(i, kGate))) {
      RETURN_IF_ERROR(ReadLinear(i, kGateUp, 2 * hidden, channels, false, layer));
    } else {
      RETURN_IF_ERROR(ReadLinear(i, kGate, hidden, channels, false, layer));
      RETURN_IF_ERROR(ReadLinear(i, kUp, hidden, channels, false, layer));
    }
    return ReadLinear(i, kDown, channels, hidden, false, layer);
  }

  absl::Status ReadLayer(int64_t i) {
    const ModelConfig& c = config();
    LayerWeights layer;
    layer.window = c.windows[static_cast<size_t>(i)];
    const bool wanted[kNormsPerLayer] = {
        true, c.family->qk_norm,   c.family->qk_norm, c.family->post_norms,
        true, c.family->post_norms};
    for (size_t j = 0; j < kNormsPerLayer; ++j) {
      if (!wanted[j]) continue;
      const bool of_head = j == kQNorm || j == kKNorm;
      ASSIGN_OR_RETURN(layer.norm[j], ReadVector(NormTensorName(i, static_cast<NormIndex>(j)),
                                                 of_head ? c.head_dim : c.embedding_length));
    }
    RETURN_IF_ERROR(ReadAttention(i, &layer));
    RETURN_IF_ERROR(ReadFeedForward(i, &layer));
    model_->layers_.push_back(layer);
    return absl::OkStatus();
  }

  absl::Status RejectUnreadTensors() const {
    for (const GgufTensor& tensor : file_->tensors()) {
      if (read_.contains(tensor.name) || !ChangesTheText(tensor.name)) continue;
      return absl::UnimplementedError(
          absl::StrCat(file_->path(), ": tensor ", tensor.name, " is not part of architecture ",
                       model_->config_.architecture, " with ", model_->config_.block_count,
                       " blocks as Fedge knows it; results would be wrong without it"));
    }
    return absl::OkStatus();
  }

  std::shared_ptr<const GgufFile> file_;
  std::shared_ptr<BaseModel> model_;
  absl::flat_hash_set<std::string> read_;  // names of tensors
};

absl::StatusOr<std::shared_ptr<const BaseModel>> BaseModel::Load(absl::string_view path, Env& env) {
  ASSIGN_OR_RETURN(std::shared_ptr<const GgufFile> file, GgufFile::Open(path, env));
  return FromGguf(std::move(file));
}

absl::StatusOr<std::shared_ptr<const BaseModel>> BaseModel::FromGguf(
    std::shared_ptr<const GgufFile> file) {
  return BaseModelLoader(std::move(file)).Load();
}

RopeKind BaseModel::RopeKindOf(const LayerWeights& layer, int64_t context) const {
  if (layer.window > 0) return kLocalRope;
  return long_rope_ && context > config_.rope.original_context ? kLongRope : kGlobalRope;
}

absl::Status BaseModel::CheckFinite() const {
  constexpr int64_t kChunk = 8192;  // a multiple of every block
  std::vector<float> values(kChunk);
  for (const GgufTensor& tensor : file_->tensors()) {
    const int64_t cols = tensor.dims[0];
    const auto* const data = reinterpret_cast<const uint8_t*>(tensor.data.data());
    for (int64_t at = 0; at < tensor.num_elements(); at += kChunk) {
      const int64_t count = std::min(kChunk, tensor.num_elements() - at);
      Dequantize(tensor.type, data + RowBytes(tensor.type, at), count, values.data());
      const auto bad = std::find_if(values.begin(), values.begin() + count,
                                    [](float value) { return !std::isfinite(value); });
      if (bad == values.begin() + count) continue;
      const int64_t place = at + (bad - values.begin());
      return absl::InvalidArgumentError(absl::StrCat(
          file_->path(), ": tensor ", tensor.name, ": row ", place / cols, ", column ",
          place % cols, " is ", *bad, "; the file is damaged or badly converted: get it again"));
    }
  }
  return absl::OkStatus();
}

const Digest& BaseModel::sha256() const {
  absl::MutexLock lock(&mutex_);
  if (!hashed_) {
    sha256_ = Sha256Of(file_->bytes());
    hashed_ = true;
  }
  return sha256_;  // never changes again
}

}  // namespace fedge
