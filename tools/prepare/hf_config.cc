#include "tools/prepare/hf_config.h"

#include <cmath>
#include <numbers>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"

namespace fedge {
namespace {

absl::Status Unsupported(const JsonObject& config, absl::string_view what) {
  return absl::UnimplementedError(absl::StrCat(config.place(), ": ", what));
}

absl::StatusOr<const FamilyLayout*> FamilyOf(const JsonObject& config) {
  ASSIGN_OR_RETURN(const std::vector<std::string> classes, config.Strings("architectures"));
  for (const std::string& name : classes) {
    const FamilyLayout* const family = FindLayoutOfClass(name);
    if (family != nullptr) return family;
  }
  return Unsupported(config, absl::StrCat("architectures [", absl::StrJoin(classes, ", "),
                                          "] are not supported; there are ", FamilyClasses()));
}

absl::Status CheckSupported(const JsonObject& config, const FamilyLayout& family) {
  if (config.Has("quantization_config")) {
    return Unsupported(config, "the weights are quantized; import the model they were made from");
  }
  const bool gemma = family.adds_one_to_norms;
  const absl::string_view expected = gemma ? "gelu_pytorch_tanh" : "silu";
  for (const absl::string_view key : {"hidden_act", "hidden_activation"}) {
    // gemma3 has both, and the second counts.
    if (gemma && key == "hidden_act") continue;
    ASSIGN_OR_RETURN(const std::string activation, config.StringOr(key, expected));
    if (activation != expected) {
      return Unsupported(
          config, absl::StrCat(key, " \"", activation, "\" is not supported; the family has \"",
                               expected, "\""));
    }
  }
  ASSIGN_OR_RETURN(const bool window, config.BoolOr("use_sliding_window", false));
  if (window && !gemma) {
    return Unsupported(config, "use_sliding_window is not supported for this family");
  }
  if (gemma && config.Has("attn_logit_softcapping")) {
    return Unsupported(config, "attn_logit_softcapping is not supported");
  }
  return absl::OkStatus();
}

absl::Status ReadSizes(const JsonObject& config, ModelOutline& outline) {
  ASSIGN_OR_RETURN(outline.hidden, config.Int("hidden_size"));
  ASSIGN_OR_RETURN(outline.layers, config.Int("num_hidden_layers"));
  ASSIGN_OR_RETURN(outline.heads, config.Int("num_attention_heads"));
  ASSIGN_OR_RETURN(outline.kv_heads, config.IntOr("num_key_value_heads", outline.heads));
  ASSIGN_OR_RETURN(outline.feed_forward, config.Int("intermediate_size"));
  ASSIGN_OR_RETURN(outline.vocabulary, config.Int("vocab_size"));
  ASSIGN_OR_RETURN(outline.context, config.Int("max_position_embeddings"));
  ASSIGN_OR_RETURN(const double epsilon, config.NumberOr("rms_norm_eps", 1e-6));
  outline.rms_epsilon = static_cast<float>(epsilon);
  if (outline.heads < 1) return config.Error("num_attention_heads", "is below 1");
  const int64_t usual_head = outline.family->adds_one_to_norms ? 256
                             : outline.family->has_qk_norm     ? 128
                                                               : outline.hidden / outline.heads;
  ASSIGN_OR_RETURN(outline.head_dim, config.IntOr("head_dim", usual_head));
  ASSIGN_OR_RETURN(const double rotated, config.NumberOr("partial_rotary_factor", 1.0));
  if (!(rotated > 0 && rotated <= 1)) {
    return config.Error("partial_rotary_factor", "is not above 0 and at most 1");
  }
  outline.rope_dim =
      std::llround(std::floor(rotated * static_cast<double>(outline.head_dim) + 1e-6));
  return absl::OkStatus();
}

// Llama 3's long context: slow frequencies are divided by `factor`, fast ones stay, those between
// are blended. As factors by which llama.cpp divides the frequencies.
absl::Status ReadLlama3Scaling(const JsonObject& scaling, ModelOutline& outline) {
  ASSIGN_OR_RETURN(const double factor, scaling.NumberOr("factor", 8));
  ASSIGN_OR_RETURN(const double low, scaling.NumberOr("low_freq_factor", 1));
  ASSIGN_OR_RETURN(const double high, scaling.NumberOr("high_freq_factor", 4));
  ASSIGN_OR_RETURN(const double original,
                   scaling.NumberOr("original_max_position_embeddings", 8192));
  if (!(factor > 0 && low > 0 && high > low && original > 0)) {
    return scaling.Error("factor", "and the others are not positive, or high is not above low");
  }
  for (int64_t i = 0; i < outline.rope_dim; i += 2) {
    const double exponent = static_cast<double>(i) / static_cast<double>(outline.rope_dim);
    const double wavelength =
        2 * std::numbers::pi * std::pow(static_cast<double>(outline.rope_base), exponent);
    double divisor = 1;
    if (wavelength > original / low) {
      divisor = factor;
    } else if (wavelength >= original / high) {
      const double smooth = (original / wavelength - low) / (high - low);
      divisor = 1 / ((1 - smooth) / factor + smooth);
    }
    outline.rope_freqs.push_back(static_cast<float>(divisor));
  }
  return absl::OkStatus();
}

// Phi-3's long context: two sets of factors, and attention made sharper by one number.
absl::Status ReadLongScaling(const JsonObject& scaling, ModelOutline& outline) {
  ASSIGN_OR_RETURN(outline.rope_long, scaling.Numbers("long_factor"));
  ASSIGN_OR_RETURN(outline.rope_short, scaling.Numbers("short_factor"));
  if (outline.rope_long.empty() || outline.rope_short.empty()) {
    return scaling.Error("long_factor", "or short_factor is missing");
  }
  const double original = static_cast<double>(outline.rope_original_context);
  const double scale = static_cast<double>(outline.context) / original;
  outline.rope_attn_factor =
      scale > 1 ? static_cast<float>(std::sqrt(1 + std::log(scale) / std::log(original))) : 1.0f;
  return absl::OkStatus();
}

absl::Status ReadScaling(const JsonObject& scaling, ModelOutline& outline) {
  ASSIGN_OR_RETURN(const std::string old_type, scaling.StringOr("type", "default"));
  ASSIGN_OR_RETURN(const std::string type, scaling.StringOr("rope_type", old_type));
  if (type == "default") return absl::OkStatus();
  const absl::string_view architecture = outline.family->architecture;
  if (type == "llama3" && architecture == "llama") return ReadLlama3Scaling(scaling, outline);
  if ((type == "longrope" || type == "su") && architecture == "phi3") {
    return ReadLongScaling(scaling, outline);
  }
  if ((type == "linear" || type == "yarn") && architecture != "phi3") {
    ASSIGN_OR_RETURN(const double factor, scaling.NumberOr("factor", 0));
    if (!(factor > 0)) return scaling.Error("factor", "is missing or not above 0");
    outline.rope_scaling = type;
    outline.rope_factor = static_cast<float>(factor);
    if (type == "yarn") {
      ASSIGN_OR_RETURN(outline.rope_original_context,
                       scaling.IntOr("original_max_position_embeddings", outline.context));
    }
    return absl::OkStatus();
  }
  return Unsupported(
      scaling, absl::StrCat("RoPE scaling \"", type, "\" is not supported for ", architecture));
}

absl::Status ReadRope(const JsonObject& config, ModelOutline& outline) {
  // Newer folders have everything about RoPE in rope_parameters, for gemma3 by kind of layer.
  ASSIGN_OR_RETURN(JsonObject parameters, config.Object("rope_parameters"));
  if (parameters.Has("full_attention")) {
    ASSIGN_OR_RETURN(const JsonObject local, parameters.Object("sliding_attention"));
    ASSIGN_OR_RETURN(const double local_base, local.NumberOr("rope_theta", 10000));
    outline.rope_base_swa = static_cast<float>(local_base);
    ASSIGN_OR_RETURN(parameters, parameters.Object("full_attention"));
  }
  const double usual_base = outline.family->adds_one_to_norms ? 1e6 : 10000;
  ASSIGN_OR_RETURN(const double base, config.NumberOr("rope_theta", usual_base));
  ASSIGN_OR_RETURN(const double newer_base, parameters.NumberOr("rope_theta", base));
  if (!(newer_base > 0)) return config.Error("rope_theta", "is not above 0");
  outline.rope_base = static_cast<float>(newer_base);
  if (std::string(outline.family->architecture) == "phi3") {
    ASSIGN_OR_RETURN(const int64_t original,
                     parameters.IntOr("original_max_position_embeddings", outline.context));
    ASSIGN_OR_RETURN(outline.rope_original_context,
                     config.IntOr("original_max_position_embeddings", original));
    if (outline.rope_original_context < 2) {
      return config.Error("original_max_position_embeddings", "is below 2");
    }
  }
  ASSIGN_OR_RETURN(const JsonObject scaling, config.Object("rope_scaling"));
  return ReadScaling(config.Has("rope_scaling") ? scaling : parameters, outline);
}

// gemma3: every so many layers one sees everything; from a number or from a list of kinds.
absl::Status ReadWindow(const JsonObject& config, ModelOutline& outline) {
  ASSIGN_OR_RETURN(outline.sliding_window, config.IntOr("sliding_window", 4096));
  ASSIGN_OR_RETURN(outline.sliding_pattern, config.IntOr("sliding_window_pattern", 6));
  ASSIGN_OR_RETURN(const std::vector<std::string> kinds, config.Strings("layer_types"));
  for (size_t i = 0; i < kinds.size(); ++i) {
    if (kinds[i] == "full_attention") {
      outline.sliding_pattern = static_cast<int64_t>(i) + 1;
      break;
    }
  }
  if (outline.sliding_pattern < 1) return config.Error("sliding_window_pattern", "is below 1");
  for (size_t i = 0; i < kinds.size(); ++i) {
    const bool global = static_cast<int64_t>(i + 1) % outline.sliding_pattern == 0;
    if ((kinds[i] == "full_attention") != global) {
      return Unsupported(config, "layer_types is not a regular pattern");
    }
  }
  if (config.Has("rope_local_base_freq")) {
    ASSIGN_OR_RETURN(const double base, config.NumberOr("rope_local_base_freq", 10000));
    outline.rope_base_swa = static_cast<float>(base);
  }
  if (config.Has("final_logit_softcapping")) {
    ASSIGN_OR_RETURN(const double cap, config.NumberOr("final_logit_softcapping", 0));
    outline.final_softcap = static_cast<float>(cap);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelOutline> OutlineOfConfig(const JsonObject& config) {
  ModelOutline outline;
  ASSIGN_OR_RETURN(outline.family, FamilyOf(config));
  RETURN_IF_ERROR(CheckSupported(config, *outline.family));
  RETURN_IF_ERROR(ReadSizes(config, outline));
  RETURN_IF_ERROR(ReadRope(config, outline));
  if (outline.family->has_post_norms) RETURN_IF_ERROR(ReadWindow(config, outline));
  if (outline.family->fuses) {
    ASSIGN_OR_RETURN(outline.sliding_window, config.IntOr("sliding_window", 0));
  }
  ASSIGN_OR_RETURN(outline.tied,
                   config.BoolOr("tie_word_embeddings", outline.family->adds_one_to_norms));
  const absl::Status fits = CheckOutline(outline);
  if (!fits.ok()) return Annotate(fits, config.place());
  return outline;
}

}  // namespace fedge
