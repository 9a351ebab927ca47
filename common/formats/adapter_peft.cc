#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "common/base/digest.h"
#include "common/base/status.h"
#include "common/formats/adapter_files.h"
#include "common/formats/adapter_parts.h"
#include "common/formats/safetensors.h"
#include "nlohmann/json.hpp"

namespace fedge {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::string_view kConfigFile = "adapter_config.json";
constexpr absl::string_view kTensorFile = "adapter_model.safetensors";
constexpr uint64_t kMaxConfigBytes = 1 << 20;
constexpr absl::string_view kPrefix = "base_model.model.";
// Fedge's own entries in the safetensors metadata. Not in adapter_config.json: older PEFT refuses
// a key it does not know.
constexpr char kArchitecture[] = "fedge.architecture";
constexpr char kBaseSha256[] = "fedge.base_model.sha256";
constexpr char kNumHeads[] = "fedge.num_heads";
constexpr char kNumKvHeads[] = "fedge.num_kv_heads";

// What of adapter_config.json decides how the tensors are to be read.
struct PeftConfig {
  double alpha = 0;
  bool use_rslora = false;
  std::vector<std::pair<std::string, double>> alpha_pattern;
  std::string base_model;
};

bool IsNullOrAbsent(const Json& config, const char* key) {
  return !config.contains(key) || config[key].is_null();
}

// Options that change what the adapter means and that Fedge does not have.
absl::Status CheckUnsupported(const Json& config) {
  for (const char* const key : {"use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"}) {
    if (!IsNullOrAbsent(config, key) && config[key] != false) {
      return absl::UnimplementedError(absl::StrCat(key, " is not supported"));
    }
  }
  for (const char* const key :
       {"modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"}) {
    if (!IsNullOrAbsent(config, key) && !config[key].empty()) {
      return absl::UnimplementedError(absl::StrCat(key, " is not supported"));
    }
  }
  if (!IsNullOrAbsent(config, "bias") && config["bias"] != "none") {
    return absl::UnimplementedError("a bias other than \"none\" is not supported");
  }
  return absl::OkStatus();
}

absl::Status ReadAlphaPattern(const Json& config, PeftConfig* out) {
  if (IsNullOrAbsent(config, "alpha_pattern")) return absl::OkStatus();
  if (!config["alpha_pattern"].is_object()) {
    return absl::InvalidArgumentError("alpha_pattern is not an object");
  }
  for (const auto& [pattern, alpha] : config["alpha_pattern"].items()) {
    if (!alpha.is_number()) {
      return absl::InvalidArgumentError("alpha_pattern has a value that is not a number");
    }
    if (pattern.find_first_of("*+?[](){}|\\$") != std::string::npos) {
      return absl::UnimplementedError(
          "alpha_pattern has a regular expression; only module names are supported");
    }
    out->alpha_pattern.emplace_back(absl::StripPrefix(pattern, "^"), alpha.get<double>());
  }
  return absl::OkStatus();
}

absl::StatusOr<PeftConfig> ParseConfig(const std::string& text) {
  const Json config = Json::parse(text.begin(), text.end(), nullptr, false);
  if (!config.is_object()) return absl::InvalidArgumentError("not a JSON object");
  if (!config.contains("peft_type") || config["peft_type"] != "LORA") {
    return absl::InvalidArgumentError("peft_type is not \"LORA\"");
  }
  if (!config.contains("lora_alpha") || !config["lora_alpha"].is_number()) {
    return absl::InvalidArgumentError("lora_alpha is missing or not a number");
  }
  PeftConfig result;
  RETURN_IF_ERROR(CheckUnsupported(config));
  RETURN_IF_ERROR(ReadAlphaPattern(config, &result));
  result.alpha = config["lora_alpha"].get<double>();
  result.use_rslora = !IsNullOrAbsent(config, "use_rslora") && config["use_rslora"] == true;
  if (config.contains("base_model_name_or_path") && config["base_model_name_or_path"].is_string()) {
    result.base_model = config["base_model_name_or_path"].get<std::string>();
  }
  return result;
}

// The given value or the file's own; FailedPrecondition when they contradict each other.
absl::Status MergeHeads(const SafetensorsFile& file, const char* key, int64_t given,
                        int64_t* heads) {
  *heads = given;
  const auto it = file.metadata().find(key);
  if (it == file.metadata().end()) return absl::OkStatus();
  int64_t own = 0;
  if (!absl::SimpleAtoi(it->second, &own) || own < 1 || own > kMaxAdapterHeads) {
    return absl::InvalidArgumentError(absl::StrCat("metadata ", key, " is no number of heads"));
  }
  if (given != 0 && given != own) {
    return absl::FailedPreconditionError(
        absl::StrCat("made for a base model with ", key, " ", own, ", not ", given));
  }
  *heads = own;
  return absl::OkStatus();
}

absl::StatusOr<AdapterInfo> MergeInfo(const SafetensorsFile& file, const PeftConfig& config,
                                      const AdapterInfo& given) {
  AdapterInfo info = given;
  info.use_rslora = config.use_rslora;
  if (!config.base_model.empty()) info.base_model = config.base_model;
  const auto sha256 = file.metadata().find(kBaseSha256);
  if (sha256 != file.metadata().end()) {
    RETURN_IF_ERROR(ParseDigest(sha256->second).status());
    info.base_model_sha256 = sha256->second;
  }
  RETURN_IF_ERROR(MergeHeads(file, kNumHeads, given.num_heads, &info.num_heads));
  RETURN_IF_ERROR(MergeHeads(file, kNumKvHeads, given.num_kv_heads, &info.num_kv_heads));
  const auto architecture = file.metadata().find(kArchitecture);
  if (architecture != file.metadata().end()) {
    if (!given.architecture.empty() && given.architecture != architecture->second) {
      return absl::FailedPreconditionError(absl::StrCat(
          "made for architecture ", architecture->second, ", not ", given.architecture));
    }
    info.architecture = architecture->second;
  } else if (info.architecture.empty()) {
    const auto& tensors = file.tensors();
    const bool is_fused = std::any_of(tensors.begin(), tensors.end(), [](const auto& tensor) {
      return absl::StrContains(tensor.name, ".qkv_proj.") ||
             absl::StrContains(tensor.name, ".gate_up_proj.");
    });
    info.architecture = is_fused ? "phi3" : "llama";
  }
  return info;
}

absl::Status AddTensor(const SafetensorsTensor& tensor, absl::string_view architecture,
                       LoraFactorMap* factors) {
  absl::string_view name = tensor.name;
  for (const char* const part : {"lora_embedding_", "lora_magnitude_vector", "modules_to_save"}) {
    if (absl::StrContains(name, part)) {
      return absl::UnimplementedError(
          absl::StrCat("tensor ", name, ": ", part, " is not supported"));
    }
  }
  const bool is_b = absl::EndsWith(name, ".lora_B.weight");
  if (!absl::ConsumePrefix(&name, kPrefix) || (!absl::ConsumeSuffix(&name, ".lora_A.weight") &&
                                               !absl::ConsumeSuffix(&name, ".lora_B.weight"))) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", tensor.name, " is not named ",
                                                   kPrefix,
                                                   "<module>.lora_A.weight or .lora_B.weight"));
  }
  const absl::StatusOr<LoraSite> site = SiteFromPeft(name, architecture);
  if (!site.ok()) return Annotate(site.status(), absl::StrCat("tensor ", tensor.name));
  if (tensor.shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", tensor.name, ": ", tensor.shape.size(), " dimensions, not 2"));
  }
  return AddFactor(*site, is_b,
                   {tensor.name, tensor.type, tensor.data, tensor.shape[0], tensor.shape[1]},
                   factors);
}

// PEFT scales by lora_alpha / r, or by lora_alpha / sqrt(r) with rsLoRA, each with a module's own
// alpha; Fedge by alpha / r with one alpha.
absl::StatusOr<float> OneAlpha(const PeftConfig& config, const LoraFactorMap& factors,
                               absl::string_view architecture) {
  ASSIGN_OR_RETURN(const std::vector<LoraModule> modules, ModulesOf(factors));
  double result = config.alpha;
  bool first = true;
  size_t i = 0;
  for (const auto& [site, pair] : factors) {
    ASSIGN_OR_RETURN(const std::string name, PeftName(site, architecture));
    double alpha = config.alpha;
    for (const auto& [pattern, own] : config.alpha_pattern) {
      if (name != pattern && !absl::EndsWith(name, "." + pattern)) continue;
      alpha = own;
      break;
    }
    if (config.use_rslora) alpha *= std::sqrt(static_cast<double>(modules[i].rank));
    if (first) result = alpha;
    if (alpha != result) {
      return absl::UnimplementedError(
          absl::StrCat("module ", name, " is scaled by another alpha than the modules before it"));
    }
    first = false;
    ++i;
  }
  return static_cast<float>(result);
}

enum class RowOrder { kGgufFromPeft, kPeftFromGguf };

// Heads of the rows of B that differ between the formats; 0 where they do not.
int64_t PermutedHeads(const LoraSite& site, const AdapterInfo& info) {
  if (info.architecture != "llama") return 0;
  if (site.kind == LoraKind::kQ) return info.num_heads;
  return site.kind == LoraKind::kK ? info.num_kv_heads : 0;
}

// One column of B, [out]: within a head PEFT has the pairs of RoPE half a head apart (j, j + hd/2),
// GGUF side by side (2j, 2j + 1).
void ReorderHeads(RowOrder order, int64_t heads, absl::Span<float> column) {
  const std::vector<float> before(column.begin(), column.end());
  const size_t head_dim = column.size() / static_cast<size_t>(heads);
  const size_t half = head_dim / 2;
  for (size_t head = 0; head < column.size(); head += head_dim) {
    for (size_t j = 0; j < half; ++j) {
      for (size_t p = 0; p < 2; ++p) {
        const size_t gguf = head + 2 * j + p;
        const size_t peft = head + p * half + j;
        if (order == RowOrder::kGgufFromPeft) {
          column[gguf] = before[peft];
        } else {
          column[peft] = before[gguf];
        }
      }
    }
  }
}

absl::Status ReorderRows(RowOrder order, const AdapterInfo& info, LoraAdapter* adapter) {
  for (size_t i = 0; i < adapter->spec().modules().size(); ++i) {
    const LoraModule& module = adapter->spec().modules()[i];
    ASSIGN_OR_RETURN(const LoraSite site, SiteFromGguf(module.tensor));
    const bool is_qk = site.kind == LoraKind::kQ || site.kind == LoraKind::kK;
    if (!is_qk || info.architecture != "llama") continue;
    const int64_t heads = PermutedHeads(site, info);
    if (heads < 1) {
      return absl::FailedPreconditionError(
          absl::StrCat("tensor ", module.tensor,
                       ": the number of heads is needed to convert between PEFT and GGUF; name the "
                       "base model"));
    }
    if (module.out_features % (2 * heads) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", module.tensor, ": ", module.out_features,
                       " rows do not divide into ", heads, " heads of even size"));
    }
    const absl::Span<float> b = adapter->b(static_cast<int64_t>(i));
    const auto out = static_cast<size_t>(module.out_features);
    for (size_t at = 0; at < b.size(); at += out) ReorderHeads(order, heads, b.subspan(at, out));
  }
  return absl::OkStatus();
}

absl::StatusOr<LoadedAdapter> ReadFrom(const SafetensorsFile& file, const PeftConfig& config,
                                       const AdapterInfo& given) {
  LoadedAdapter loaded;
  ASSIGN_OR_RETURN(loaded.info, MergeInfo(file, config, given));
  const std::string& architecture = loaded.info.architecture;
  LoraFactorMap factors;
  for (const SafetensorsTensor& tensor : file.tensors()) {
    RETURN_IF_ERROR(AddTensor(tensor, architecture, &factors));
  }
  ASSIGN_OR_RETURN(const float alpha, OneAlpha(config, factors, architecture));
  ASSIGN_OR_RETURN(loaded.adapter, AssembleAdapter(factors, architecture, alpha));
  RETURN_IF_ERROR(ReorderRows(RowOrder::kGgufFromPeft, loaded.info, &loaded.adapter));
  return loaded;
}

// The rank most modules have, the smaller one of equals.
int64_t CommonRank(const LoraSpec& spec) {
  std::map<int64_t, int64_t> counts;
  for (const LoraModule& module : spec.modules()) ++counts[module.rank];
  return std::max_element(counts.begin(), counts.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

// The last parts of the modules' names ("q_proj"), as PEFT users write them; whole names when some
// layer lacks a module that another has, as the short ones would adapt it too.
Json TargetModules(const std::vector<std::string>& names) {
  std::map<std::string, size_t> layers_with;
  for (const std::string& name : names) ++layers_with[name.substr(name.rfind('.') + 1)];
  size_t most = 0;
  for (const auto& [kind, layers] : layers_with) {
    if (kind != "lm_head") most = std::max(most, layers);
  }
  Json targets = Json::array();
  for (const auto& [kind, layers] : layers_with) {
    if (kind != "lm_head" && layers != most) return Json(names);
    targets.push_back(kind);
  }
  return targets;
}

// The alpha that PEFT divides by sqrt(rank) to get our alpha / rank: a whole number where one gives
// the same fp32 alpha back.
double RsloraAlpha(float alpha, int64_t rank) {
  const double root = std::sqrt(static_cast<double>(rank));
  const double exact = static_cast<double>(alpha) / root;
  return static_cast<float>(std::round(exact) * root) == alpha ? std::round(exact) : exact;
}

Json NumberText(double value) {
  const bool is_whole = value == std::floor(value) && value < 1e9;
  return is_whole ? Json(static_cast<int64_t>(value)) : Json(value);
}

std::string ConfigText(const LoraSpec& spec, const AdapterInfo& info,
                       const std::vector<std::string>& names) {
  const int64_t rank = CommonRank(spec);
  Json rank_pattern = Json::object();
  for (size_t i = 0; i < names.size(); ++i) {
    if (spec.modules()[i].rank != rank) rank_pattern[names[i]] = spec.modules()[i].rank;
  }
  const bool use_rslora = info.use_rslora && rank_pattern.empty();
  Json config;
  config["alpha_pattern"] = Json::object();
  config["auto_mapping"] = nullptr;
  config["base_model_name_or_path"] = info.base_model.empty() ? Json() : Json(info.base_model);
  config["bias"] = "none";
  config["fan_in_fan_out"] = false;
  config["inference_mode"] = true;
  config["init_lora_weights"] = true;
  config["layers_pattern"] = nullptr;
  config["layers_to_transform"] = nullptr;
  config["lora_alpha"] =
      NumberText(use_rslora ? RsloraAlpha(spec.alpha(), rank) : double{spec.alpha()});
  config["lora_dropout"] = 0.0;
  config["modules_to_save"] = nullptr;
  config["peft_type"] = "LORA";
  config["r"] = rank;
  config["rank_pattern"] = rank_pattern;
  config["revision"] = nullptr;
  config["target_modules"] = TargetModules(names);
  config["task_type"] = "CAUSAL_LM";
  config["use_dora"] = false;
  config["use_rslora"] = use_rslora;
  return config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::map<std::string, std::string> Metadata(const LoraSpec& spec, const AdapterInfo& info) {
  std::map<std::string, std::string> metadata = {{"format", "pt"},
                                                 {kArchitecture, spec.architecture()}};
  if (!info.base_model_sha256.empty()) metadata[kBaseSha256] = info.base_model_sha256;
  if (info.num_heads > 0) metadata[kNumHeads] = absl::StrCat(info.num_heads);
  if (info.num_kv_heads > 0) metadata[kNumKvHeads] = absl::StrCat(info.num_kv_heads);
  return metadata;
}

absl::StatusOr<std::vector<std::string>> PeftNames(const LoraSpec& spec) {
  std::vector<std::string> names;
  for (const LoraModule& module : spec.modules()) {
    ASSIGN_OR_RETURN(const LoraSite site, SiteFromGguf(module.tensor));
    ASSIGN_OR_RETURN(std::string name, PeftName(site, spec.architecture()));
    names.push_back(std::move(name));
  }
  return names;
}

}  // namespace

absl::StatusOr<LoadedAdapter> ReadAdapterPeft(absl::string_view dir, const AdapterInfo& info,
                                              Env& env) {
  const std::string config_path = JoinPath(dir, kConfigFile);
  ASSIGN_OR_RETURN(const std::string text, env.ReadFile(config_path, kMaxConfigBytes));
  const absl::StatusOr<PeftConfig> config = ParseConfig(text);
  if (!config.ok()) return Annotate(config.status(), config_path);
  const std::string path = JoinPath(dir, kTensorFile);
  ASSIGN_OR_RETURN(const std::shared_ptr<const SafetensorsFile> file,
                   SafetensorsFile::Open(path, env));
  absl::StatusOr<LoadedAdapter> loaded = ReadFrom(*file, *config, info);
  if (!loaded.ok()) return Annotate(loaded.status(), path);
  return loaded;
}

absl::Status WriteAdapterPeft(const LoraAdapter& adapter, const AdapterInfo& info,
                              absl::string_view dir, Env& env) {
  absl::StatusOr<LoraAdapter> whole = WithoutParts(adapter);
  if (!whole.ok()) return Annotate(whole.status(), dir);
  LoraAdapter peft = *std::move(whole);
  const LoraSpec& spec = peft.spec();
  AdapterInfo own = info;
  own.architecture = spec.architecture();
  const absl::Status reordered = ReorderRows(RowOrder::kPeftFromGguf, own, &peft);
  if (!reordered.ok()) return Annotate(reordered, dir);
  const absl::StatusOr<std::vector<std::string>> names = PeftNames(spec);
  if (!names.ok()) return Annotate(names.status(), dir);
  std::vector<SafetensorsEntry> entries;
  for (size_t i = 0; i < names->size(); ++i) {
    const LoraModule& module = spec.modules()[i];
    const auto a = peft.a(static_cast<int64_t>(i));
    entries.push_back({absl::StrCat(kPrefix, (*names)[i], ".lora_A.weight"),
                       {module.rank, module.in_features},
                       std::vector<float>(a.begin(), a.end())});
    entries.push_back({absl::StrCat(kPrefix, (*names)[i], ".lora_B.weight"),
                       {module.out_features, module.rank},
                       BOutByRank(peft, static_cast<int64_t>(i))});
  }
  RETURN_IF_ERROR(env.CreateDirs(dir));
  RETURN_IF_ERROR(env.WriteFileAtomic(JoinPath(dir, kTensorFile),
                                      SerializeSafetensors(entries, Metadata(spec, info))));
  // Last: a folder with a configuration is whole.
  return env.WriteFileAtomic(JoinPath(dir, kConfigFile), ConfigText(spec, info, *names));
}

absl::StatusOr<LoadedAdapter> ReadAdapter(absl::string_view path, const AdapterInfo& info,
                                          Env& env) {
  return env.IsDirectory(path) ? ReadAdapterPeft(path, info, env) : ReadAdapterGguf(path, env);
}

}  // namespace fedge
