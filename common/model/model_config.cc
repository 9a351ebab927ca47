#include "common/model/model_config.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

// Bounds on what a file may claim, far above any real model.
constexpr uint64_t kMaxDimension = uint64_t{1} << 24;
constexpr uint64_t kMaxBlocks = 4096;
constexpr uint64_t kMaxContext = uint64_t{1} << 31;

// Keys that change the result in ways that none of the families has, and the values at which they
// do not.
struct NeutralKey {
  absl::string_view name;
  double neutral;
  double also_neutral;
};
constexpr NeutralKey kNeutralKeys[] = {
    {"expert_count", 0, 0},
    {"attn_logit_softcapping", 0, 0},
    {"attention.clamp_kqv", 0, 0},
    {"attention.temperature_scale", 0, 0},
    {"residual_scale", 0, 1},
    {"embedding_scale", 0, 1},
    {"logit_scale", 0, 1},
    {"rope.scaling.yarn_log_multiplier", 0, 0},
    {"rope.scaling.yarn_attn_factor", 1, 1},
};

class ConfigReader {
 public:
  explicit ConfigReader(const GgufFile& file) : file_(file) {}

  absl::StatusOr<ModelConfig> Read() {
    RETURN_IF_ERROR(ReadArchitecture());
    RETURN_IF_ERROR(RejectVariants());
    RETURN_IF_ERROR(ReadSizes());
    RETURN_IF_ERROR(ReadAttentionSizes());
    RETURN_IF_ERROR(ReadScales());
    RETURN_IF_ERROR(ReadRope());
    RETURN_IF_ERROR(ReadWindows());
    return std::move(config_);
  }

 private:
  std::string Key(absl::string_view name) const {
    return absl::StrCat(config_.architecture, ".", name);
  }

  template <typename... Parts>
  absl::Status Invalid(const Parts&... parts) const {
    return absl::InvalidArgumentError(absl::StrCat(file_.path(), ": ", parts...));
  }
  template <typename... Parts>
  absl::Status Unsupported(const Parts&... parts) const {
    return absl::UnimplementedError(absl::StrCat(file_.path(), ": ", parts...));
  }

  absl::Status ReadArchitecture() {
    if (file_.Find("general.architecture") == nullptr) {
      return Invalid("no key general.architecture; is this a model file?");
    }
    ASSIGN_OR_RETURN(const absl::string_view name, file_.GetString("general.architecture"));
    config_.architecture = std::string(name);
    config_.family = FindModelFamily(name);
    if (config_.family != nullptr) return absl::OkStatus();
    return Unsupported("architecture \"", name,
                       "\" is not supported (supported: ", SupportedFamilies(), ")");
  }

  absl::Status RejectVariants() const {
    for (const NeutralKey& key : kNeutralKeys) {
      ASSIGN_OR_RETURN(const double value, file_.GetFloatOr(Key(key.name), key.neutral));
      if (value == key.neutral || value == key.also_neutral) continue;
      if (key.name == "expert_count") {
        return Unsupported("key ", Key(key.name), " is ", value,
                           ": mixtures of experts are not supported");
      }
      return Unsupported("key ", Key(key.name), " is ", value,
                         ": this variant of the architecture is not supported");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<int64_t>> Ints(const std::string& key, const GgufValue& list) const {
    absl::StatusOr<std::vector<int64_t>> numbers = list.AsInts();
    if (!numbers.ok()) return Invalid("key ", key, ": ", numbers.status().message());
    return numbers;
  }

  // The size under `name`, in [1, limit]. A missing key is an error unless there is a fallback. A
  // list counts when its values are equal.
  absl::Status ReadSize(absl::string_view name, uint64_t limit, int64_t fallback, int64_t* size) {
    const std::string key = Key(name);
    const GgufValue* const value = file_.Find(key);
    if (value == nullptr) {
      if (fallback <= 0) return Invalid("no key ", key);
      *size = fallback;
      return absl::OkStatus();
    }
    uint64_t number = 0;
    if (value->type() == GgufType::kArray) {
      ASSIGN_OR_RETURN(const std::vector<int64_t> numbers, Ints(key, *value));
      if (numbers.empty() || std::count(numbers.begin(), numbers.end(), numbers[0]) !=
                                 static_cast<std::ptrdiff_t>(numbers.size())) {
        return Unsupported("key ", key,
                           " is a list of different values: models whose blocks differ are not "
                           "supported");
      }
      number = numbers[0] < 0 ? 0 : static_cast<uint64_t>(numbers[0]);
    } else {
      ASSIGN_OR_RETURN(number, file_.GetUint(key));
    }
    if (number < 1 || number > limit) {
      return Invalid("key ", key, " is ", number, "; it must be 1 to ", limit);
    }
    *size = static_cast<int64_t>(number);
    return absl::OkStatus();
  }

  // The number under `name`, in [low, high].
  absl::Status ReadNumber(absl::string_view name, double low, double high, float* number) {
    const std::string key = Key(name);
    ASSIGN_OR_RETURN(const double value, file_.GetFloatOr(key, static_cast<double>(*number)));
    if (!(value >= low && value <= high)) {
      return Invalid("key ", key, " is ", value, "; it must be ", low, " to ", high);
    }
    *number = static_cast<float>(value);
    return absl::OkStatus();
  }

  absl::Status ReadSizes() {
    ModelConfig& c = config_;
    RETURN_IF_ERROR(ReadSize("context_length", kMaxContext, 0, &c.context_length));
    RETURN_IF_ERROR(ReadSize("embedding_length", kMaxDimension, 0, &c.embedding_length));
    RETURN_IF_ERROR(ReadSize("block_count", kMaxBlocks, 0, &c.block_count));
    RETURN_IF_ERROR(ReadSize("feed_forward_length", kMaxDimension, 0, &c.feed_forward_length));
    const std::string key = Key("attention.layer_norm_rms_epsilon");
    if (file_.Find(key) == nullptr) return Invalid("no key ", key);
    ASSIGN_OR_RETURN(const double epsilon, file_.GetFloat(key));
    if (!(epsilon > 0 && epsilon < 1)) return Invalid("key ", key, " is ", epsilon);
    c.rms_epsilon = static_cast<float>(epsilon);
    return absl::OkStatus();
  }

  absl::Status ReadAttentionSizes() {
    ModelConfig& c = config_;
    RETURN_IF_ERROR(ReadSize("attention.head_count", kMaxDimension, 0, &c.head_count));
    RETURN_IF_ERROR(
        ReadSize("attention.head_count_kv", kMaxDimension, c.head_count, &c.head_count_kv));
    if (c.head_count % c.head_count_kv != 0) {
      return Invalid(c.head_count, " attention heads are not a multiple of ", c.head_count_kv,
                     " key/value heads");
    }
    const int64_t width = c.embedding_length / c.head_count;
    RETURN_IF_ERROR(ReadSize("attention.key_length", kMaxDimension, width, &c.head_dim));
    int64_t value_length = 0;
    RETURN_IF_ERROR(ReadSize("attention.value_length", kMaxDimension, width, &value_length));
    if (value_length != c.head_dim) {
      return Unsupported("attention.key_length ", c.head_dim, " differs from value_length ",
                         value_length);
    }
    return absl::OkStatus();
  }

  absl::Status ReadScales() {
    ModelConfig& c = config_;
    const bool wide = c.block_count == c.family->wide_scale_blocks;
    const int64_t width = wide ? c.embedding_length / c.head_count : c.head_dim;
    c.attention_scale = 0;
    RETURN_IF_ERROR(ReadNumber("attention.scale", 0, 1e6, &c.attention_scale));
    if (c.attention_scale == 0) c.attention_scale = 1.0f / std::sqrt(static_cast<float>(width));
    if (c.family->scaled_embedding) {
      c.embedding_scale = std::sqrt(static_cast<float>(c.embedding_length));
    }
    return ReadNumber("final_logit_softcapping", 0, 1e6, &c.logit_soft_cap);
  }

  absl::Status ReadRope() {
    ModelConfig& c = config_;
    RETURN_IF_ERROR(ReadSize("rope.dimension_count", kMaxDimension, c.head_dim, &c.rope_dim));
    if (c.rope_dim % 2 != 0 || c.rope_dim > c.head_dim) {
      return Invalid("key ", Key("rope.dimension_count"), " is ", c.rope_dim,
                     "; it must be even and at most the head size ", c.head_dim);
    }
    RETURN_IF_ERROR(ReadSize("rope.scaling.original_context_length", kMaxContext, c.context_length,
                             &c.rope.original_context));
    RETURN_IF_ERROR(ReadNumber("rope.freq_base", 1e-6, 1e12, &c.rope.freq_base));
    RETURN_IF_ERROR(ReadNumber("rope.scaling.attn_factor", 1e-6, 1e6, &c.rope.magnitude));
    c.local_rope = c.rope;
    c.local_rope.freq_base = 10000;
    RETURN_IF_ERROR(ReadNumber("rope.freq_base_swa", 1e-6, 1e12, &c.local_rope.freq_base));
    return ReadRopeScaling();
  }

  absl::Status ReadRopeScaling() {
    RopeScaling& rope = config_.rope;
    ASSIGN_OR_RETURN(const absl::string_view type,
                     file_.GetStringOr(Key("rope.scaling.type"), "linear"));
    if (type == "none") return absl::OkStatus();
    const bool yarn = type == "yarn";
    if (!yarn && type != "linear" && type != "longrope") {
      return Unsupported("rope.scaling.type \"", type,
                         "\" is not supported (supported: none, linear, yarn, longrope)");
    }
    float factor = 0;
    const bool old_key = file_.Find(Key("rope.scaling.factor")) == nullptr;
    RETURN_IF_ERROR(
        ReadNumber(old_key ? "rope.scale_linear" : "rope.scaling.factor", 0, 1e6, &factor));
    if (factor > 0) rope.freq_scale = 1 / factor;
    if (!yarn) return absl::OkStatus();
    rope.yarn_mix = 1;
    RETURN_IF_ERROR(ReadNumber("rope.scaling.yarn_ext_factor", 0, 1, &rope.yarn_mix));
    RETURN_IF_ERROR(ReadNumber("rope.scaling.yarn_beta_fast", 1e-6, 1e6, &rope.yarn_beta_fast));
    return ReadNumber("rope.scaling.yarn_beta_slow", 1e-6, 1e6, &rope.yarn_beta_slow);
  }

  // Layer i is local when i % period < period - 1, or as a list of the file says.
  absl::Status ReadWindows() {
    ModelConfig& c = config_;
    c.windows.assign(static_cast<size_t>(c.block_count), 0);
    if (!c.family->sliding_window) return absl::OkStatus();
    ASSIGN_OR_RETURN(const uint64_t window, file_.GetUintOr(Key("attention.sliding_window"), 0));
    if (window == 0) return absl::OkStatus();
    if (window > kMaxContext) {
      return Invalid("key ", Key("attention.sliding_window"), " is ", window,
                     "; it must be at most ", kMaxContext);
    }
    const std::string key = Key("attention.sliding_window_pattern");
    const GgufValue* const pattern = file_.Find(key);
    if (pattern != nullptr && pattern->type() == GgufType::kArray) {
      ASSIGN_OR_RETURN(const std::vector<int64_t> local, Ints(key, *pattern));
      if (local.size() != c.windows.size()) {
        return Invalid("key ", key, " has ", local.size(), " values for ", c.block_count,
                       " blocks");
      }
      for (size_t i = 0; i < local.size(); ++i) {
        if (local[i] != 0) c.windows[i] = static_cast<int64_t>(window);
      }
      return absl::OkStatus();
    }
    int64_t period = 0;
    RETURN_IF_ERROR(
        ReadSize("attention.sliding_window_pattern", kMaxBlocks, c.family->window_period, &period));
    for (int64_t i = 0; i < c.block_count; ++i) {
      if (i % period < period - 1) c.windows[static_cast<size_t>(i)] = static_cast<int64_t>(window);
    }
    return absl::OkStatus();
  }

  const GgufFile& file_;
  ModelConfig config_;
};

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file) {
  return ConfigReader(file).Read();
}

std::array<FusedPart, 5> FusedParts(const ModelConfig& config) {
  const int64_t q = config.head_count * config.head_dim;
  const int64_t kv = config.head_count_kv * config.head_dim;
  const int64_t hidden = config.feed_forward_length;
  return {{{kQkv, kQ, 0, q},
           {kQkv, kK, q, kv},
           {kQkv, kV, q + kv, kv},
           {kGateUp, kGate, 0, hidden},
           {kGateUp, kUp, hidden, hidden}}};
}

}  // namespace fedge
