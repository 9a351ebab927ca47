#include "common/model/base_model.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"
#include "common/model/layer.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

// What a family does differently. Families are rows of this table, not copies of the code.
struct ModelFamily {
  const char* architecture;
};
constexpr ModelFamily kFamilies[] = {{"llama"}};

// Bounds on what a file may claim, far above any real model.
constexpr uint64_t kMaxDimension = uint64_t{1} << 24;
constexpr uint64_t kMaxBlocks = 4096;
constexpr uint64_t kMaxContext = uint64_t{1} << 31;

std::string ShapeText(int64_t rows, int64_t cols) {
  return absl::StrCat("[", rows, ", ", cols, "]");
}

}  // namespace

// Reads one file. Messages begin with the file's path.
class BaseModelLoader {
 public:
  explicit BaseModelLoader(std::shared_ptr<const GgufFile> file) : file_(std::move(file)) {}

  absl::StatusOr<std::shared_ptr<const BaseModel>> Load() {
    model_ = std::shared_ptr<BaseModel>(new BaseModel());
    model_->file_ = file_;
    RETURN_IF_ERROR(ReadArchitecture());
    RETURN_IF_ERROR(ReadSizes());
    RETURN_IF_ERROR(ReadAttentionSizes());
    RETURN_IF_ERROR(ReadRope());
    ASSIGN_OR_RETURN(model_->tokenizer_, Tokenizer::FromGguf(*file_));
    RETURN_IF_ERROR(ReadEmbeddings());
    RETURN_IF_ERROR(RejectUnsupportedTensors());
    for (int64_t i = 0; i < config().block_count; ++i) RETURN_IF_ERROR(ReadLayer(i));
    return std::shared_ptr<const BaseModel>(std::move(model_));
  }

 private:
  ModelConfig& config() { return model_->config_; }
  std::string Key(absl::string_view name) { return absl::StrCat(config().architecture, ".", name); }

  template <typename... Parts>
  absl::Status Invalid(const Parts&... parts) const {
    return absl::InvalidArgumentError(absl::StrCat(file_->path(), ": ", parts...));
  }
  template <typename... Parts>
  absl::Status Unsupported(const Parts&... parts) const {
    return absl::UnimplementedError(absl::StrCat(file_->path(), ": ", parts...));
  }

  absl::Status ReadArchitecture() {
    if (file_->Find("general.architecture") == nullptr) {
      return Invalid("no key general.architecture; is this a model file?");
    }
    ASSIGN_OR_RETURN(const absl::string_view name, file_->GetString("general.architecture"));
    std::vector<absl::string_view> known;
    for (const ModelFamily& family : kFamilies) {
      if (name == family.architecture) {
        config().architecture = std::string(name);
        return absl::OkStatus();
      }
      known.push_back(family.architecture);
    }
    return Unsupported("architecture \"", name,
                       "\" is not supported (supported: ", absl::StrJoin(known, ", "), ")");
  }

  // The size under `name`, in [1, limit]. A missing key is an error unless there is a fallback.
  absl::Status ReadSize(absl::string_view name, uint64_t limit, int64_t fallback, int64_t* size) {
    const std::string key = Key(name);
    const GgufValue* const value = file_->Find(key);
    if (value == nullptr) {
      if (fallback <= 0) return Invalid("no key ", key);
      *size = fallback;
      return absl::OkStatus();
    }
    if (value->type() == GgufType::kArray) {
      return Unsupported("key ", key, " is a list: models whose blocks differ are not supported");
    }
    ASSIGN_OR_RETURN(const uint64_t number, file_->GetUint(key));
    if (number < 1 || number > limit) {
      return Invalid("key ", key, " is ", number, "; it must be 1 to ", limit);
    }
    *size = static_cast<int64_t>(number);
    return absl::OkStatus();
  }

  absl::Status ReadSizes() {
    ModelConfig& c = config();
    RETURN_IF_ERROR(ReadSize("context_length", kMaxContext, 0, &c.context_length));
    RETURN_IF_ERROR(ReadSize("embedding_length", kMaxDimension, 0, &c.embedding_length));
    RETURN_IF_ERROR(ReadSize("block_count", kMaxBlocks, 0, &c.block_count));
    RETURN_IF_ERROR(ReadSize("feed_forward_length", kMaxDimension, 0, &c.feed_forward_length));
    ASSIGN_OR_RETURN(const uint64_t experts, file_->GetUintOr(Key("expert_count"), 0));
    if (experts > 0) return Unsupported("mixtures of experts are not supported");
    const std::string key = Key("attention.layer_norm_rms_epsilon");
    if (file_->Find(key) == nullptr) return Invalid("no key ", key);
    ASSIGN_OR_RETURN(const double epsilon, file_->GetFloat(key));
    if (!(epsilon > 0 && epsilon < 1)) return Invalid("key ", key, " is ", epsilon);
    c.rms_epsilon = static_cast<float>(epsilon);
    return absl::OkStatus();
  }

  absl::Status ReadAttentionSizes() {
    ModelConfig& c = config();
    RETURN_IF_ERROR(ReadSize("attention.head_count", kMaxDimension, 0, &c.head_count));
    RETURN_IF_ERROR(
        ReadSize("attention.head_count_kv", kMaxDimension, c.head_count, &c.head_count_kv));
    if (c.head_count % c.head_count_kv != 0) {
      return Invalid(c.head_count, " attention heads are not a multiple of ", c.head_count_kv,
                     " key/value heads");
    }
    RETURN_IF_ERROR(ReadSize("attention.key_length", kMaxDimension,
                             c.embedding_length / c.head_count, &c.head_dim));
    int64_t value_length = 0;
    RETURN_IF_ERROR(ReadSize("attention.value_length", kMaxDimension,
                             c.embedding_length / c.head_count, &value_length));
    if (value_length != c.head_dim) {
      return Unsupported("attention.key_length ", c.head_dim, " differs from value_length ",
                         value_length);
    }
    if (file_->Find(Key("attention.scale")) != nullptr) {
      return Unsupported("key ", Key("attention.scale"), " is not supported");
    }
    return absl::OkStatus();
  }

  absl::Status ReadRopeScaling() {
    ASSIGN_OR_RETURN(const absl::string_view type,
                     file_->GetStringOr(Key("rope.scaling.type"), "linear"));
    if (type == "none") return absl::OkStatus();
    const std::string key = file_->Find(Key("rope.scaling.factor")) != nullptr
                                ? Key("rope.scaling.factor")
                                : Key("rope.scale_linear");
    ASSIGN_OR_RETURN(const double factor, file_->GetFloatOr(key, 0));
    if (!(factor >= 0 && factor < 1e6)) return Invalid("key ", key, " is ", factor);
    if (type != "linear") {
      return Unsupported("rope.scaling.type \"", type, "\" (supported: none, linear)");
    }
    if (factor > 0) config().rope_freq_scale = static_cast<float>(1 / factor);
    return absl::OkStatus();
  }

  absl::Status ReadRope() {
    ModelConfig& c = config();
    RETURN_IF_ERROR(ReadSize("rope.dimension_count", kMaxDimension, c.head_dim, &c.rope_dim));
    if (c.rope_dim % 2 != 0 || c.rope_dim > c.head_dim) {
      return Invalid("key ", Key("rope.dimension_count"), " is ", c.rope_dim,
                     "; it must be even and at most the head size ", c.head_dim);
    }
    ASSIGN_OR_RETURN(const double base, file_->GetFloatOr(Key("rope.freq_base"), 10000));
    if (!(base > 0 && base < 1e12)) return Invalid("key ", Key("rope.freq_base"), " is ", base);
    c.rope_freq_base = static_cast<float>(base);
    RETURN_IF_ERROR(ReadRopeScaling());

    const int64_t pairs = c.rope_dim / 2;
    std::vector<float> factors(static_cast<size_t>(pairs), 1.0f);
    if (file_->FindTensor("rope_freqs.weight") != nullptr) {
      ASSIGN_OR_RETURN(const float* values, ReadVector("rope_freqs.weight", pairs));
      factors.assign(values, values + pairs);
    }
    for (int64_t i = 0; i < pairs; ++i) {
      const float factor = factors[static_cast<size_t>(i)];
      if (!(factor > 0) || !std::isfinite(factor)) {
        return Invalid("tensor rope_freqs.weight: value ", i, " is ", factor,
                       "; it must be positive");
      }
      const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(c.rope_dim);
      model_->rope_frequencies_.push_back(
          static_cast<float>(static_cast<double>(c.rope_freq_scale) * std::pow(base, exponent) /
                             static_cast<double>(factor)));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<const GgufTensor*> FindTensor(absl::string_view name) {
    const GgufTensor* const tensor = file_->FindTensor(name);
    if (tensor == nullptr) return Invalid("tensor ", name, " is missing");
    return tensor;
  }

  absl::StatusOr<WeightMatrix> ReadMatrix(absl::string_view name, int64_t rows, int64_t cols) {
    ASSIGN_OR_RETURN(const GgufTensor* tensor, FindTensor(name));
    const absl::StatusOr<WeightMatrix> matrix = tensor->AsMatrix();
    if (!matrix.ok()) return Annotate(matrix.status(), file_->path());
    if (matrix->rows != rows || matrix->cols != cols) {
      return Invalid("tensor ", name, " has shape ", ShapeText(matrix->rows, matrix->cols),
                     ", expected ", ShapeText(rows, cols));
    }
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

  absl::Status ReadEmbeddings() {
    ModelConfig& c = config();
    c.vocab_size = model_->tokenizer_->vocab_size();
    ASSIGN_OR_RETURN(model_->token_embedding_,
                     ReadMatrix("token_embd.weight", c.vocab_size, c.embedding_length));
    ASSIGN_OR_RETURN(model_->output_norm_, ReadVector("output_norm.weight", c.embedding_length));
    model_->tied_output_ = file_->FindTensor("output.weight") == nullptr;
    if (model_->tied_output_) {
      model_->output_ = model_->token_embedding_;
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(model_->output_,
                     ReadMatrix("output.weight", c.vocab_size, c.embedding_length));
    return absl::OkStatus();
  }

  // Other leftover tensors have no effect on the result; these would.
  absl::Status RejectUnsupportedTensors() {
    for (const GgufTensor& tensor : file_->tensors()) {
      const absl::string_view name = tensor.name;
      if (absl::EndsWith(name, ".bias")) {
        return Unsupported("tensor ", name, ": biases are not supported for architecture ",
                           config().architecture);
      }
      if (absl::StrContains(name, "attn_qkv") || absl::StrContains(name, "attn_q_norm") ||
          absl::StrContains(name, "attn_k_norm")) {
        return Unsupported("tensor ", name, " is not supported for architecture ",
                           config().architecture);
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadLayer(int64_t i) {
    const ModelConfig& c = config();
    const int64_t channels = c.embedding_length;
    const int64_t hidden = c.feed_forward_length;
    const int64_t q_rows = c.head_count * c.head_dim;
    const int64_t kv_rows = c.head_count_kv * c.head_dim;
    LayerWeights layer;
    ASSIGN_OR_RETURN(layer.attn_norm,
                     ReadVector(absl::StrCat("blk.", i, ".attn_norm.weight"), channels));
    ASSIGN_OR_RETURN(layer.ffn_norm,
                     ReadVector(absl::StrCat("blk.", i, ".ffn_norm.weight"), channels));
    const auto read = [&](LinearIndex index, int64_t rows, int64_t cols,
                          WeightMatrix* matrix) -> absl::Status {
      ASSIGN_OR_RETURN(*matrix, ReadMatrix(LinearTensorName(i, index), rows, cols));
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(read(kQ, q_rows, channels, &layer.q));
    RETURN_IF_ERROR(read(kK, kv_rows, channels, &layer.k));
    RETURN_IF_ERROR(read(kV, kv_rows, channels, &layer.v));
    RETURN_IF_ERROR(read(kO, channels, q_rows, &layer.o));
    RETURN_IF_ERROR(read(kGate, hidden, channels, &layer.gate));
    RETURN_IF_ERROR(read(kUp, hidden, channels, &layer.up));
    RETURN_IF_ERROR(read(kDown, channels, hidden, &layer.down));
    model_->layers_.push_back(layer);
    return absl::OkStatus();
  }

  std::shared_ptr<const GgufFile> file_;
  std::shared_ptr<BaseModel> model_;
};

absl::StatusOr<std::shared_ptr<const BaseModel>> BaseModel::Load(absl::string_view path, Env& env) {
  ASSIGN_OR_RETURN(std::shared_ptr<const GgufFile> file, GgufFile::Open(path, env));
  return FromGguf(std::move(file));
}

absl::StatusOr<std::shared_ptr<const BaseModel>> BaseModel::FromGguf(
    std::shared_ptr<const GgufFile> file) {
  return BaseModelLoader(std::move(file)).Load();
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
