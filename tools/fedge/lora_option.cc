#include "tools/fedge/lora_option.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {

absl::StatusOr<LoraOption> ParseLoraOption(absl::string_view text, Env& env) {
  if (env.Exists(text)) return LoraOption{std::string(text), 1.0};
  const size_t colon = text.rfind(':');
  if (colon != absl::string_view::npos) {
    LoraOption option;
    option.path = std::string(text.substr(0, colon));
    if (absl::SimpleAtod(text.substr(colon + 1), &option.scale) && std::isfinite(option.scale) &&
        env.Exists(option.path)) {
      return option;
    }
  }
  return absl::NotFoundError(absl::StrCat(
      text, ": no such adapter; --lora takes a file or a folder, with an optional :scale"));
}

absl::StatusOr<LoraAdapter> ScaleAdapter(const LoraAdapter& adapter, double scale) {
  const LoraSpec& spec = adapter.spec();
  const double strength = scale == 0 ? 1.0 : std::fabs(scale);
  ASSIGN_OR_RETURN(
      LoraSpec scaled,
      LoraSpec::Create(spec.architecture(),
                       static_cast<float>(static_cast<double>(spec.alpha()) * strength),
                       spec.modules()));
  LoraAdapter result(std::move(scaled));
  std::copy(adapter.values().begin(), adapter.values().end(), result.values().begin());
  const float sign = scale == 0 ? 0.0f : (scale < 0 ? -1.0f : 1.0f);
  for (size_t i = 0; i < spec.modules().size() && sign != 1.0f; ++i) {
    for (float& value : result.b(static_cast<int64_t>(i))) value *= sign;
  }
  return result;
}

AdapterInfo AdapterInfoOf(const BaseModel& model, bool with_hash) {
  AdapterInfo info;
  info.architecture = model.config().architecture;
  info.base_model = std::string(BaseName(model.file().path()));
  if (with_hash) info.base_model_sha256 = model.sha256().Hex();
  info.num_heads = model.config().head_count;
  info.num_kv_heads = model.config().head_count_kv;
  return info;
}

absl::StatusOr<std::optional<LoraAdapter>> LoadLoraOption(absl::string_view text,
                                                          const BaseModel& model, Env& env) {
  if (text.empty()) return std::optional<LoraAdapter>();
  ASSIGN_OR_RETURN(const LoraOption option, ParseLoraOption(text, env));
  ASSIGN_OR_RETURN(LoadedAdapter loaded,
                   ReadAdapter(option.path, AdapterInfoOf(model, false), env));
  const absl::Status fits = model.CheckAdapter(loaded.adapter.spec());
  if (!fits.ok()) return Annotate(fits, option.path);
  if (option.scale == 1) return std::optional<LoraAdapter>(std::move(loaded.adapter));
  absl::StatusOr<LoraAdapter> scaled = ScaleAdapter(loaded.adapter, option.scale);
  if (!scaled.ok()) return Annotate(scaled.status(), option.path);
  return std::optional<LoraAdapter>(*std::move(scaled));
}

}  // namespace fedge
