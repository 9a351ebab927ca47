#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/base/digest.h"
#include "common/base/status.h"
#include "common/formats/adapter_files.h"
#include "common/formats/adapter_parts.h"
#include "common/formats/gguf.h"
#include "common/formats/gguf_writer.h"

namespace fedge {
namespace {

constexpr absl::string_view kBaseName = "general.base_model.0.name";
constexpr absl::string_view kBaseSha256 = "fedge.base_model.sha256";
constexpr absl::string_view kNumHeads = "fedge.num_heads";
constexpr absl::string_view kNumKvHeads = "fedge.num_kv_heads";

absl::Status ExpectString(const GgufFile& file, absl::string_view key, absl::string_view wanted) {
  ASSIGN_OR_RETURN(const absl::string_view value, file.GetStringOr(key, ""));
  if (value == wanted) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("not a LoRA adapter: ", key, " is not \"", wanted, "\""));
}

absl::StatusOr<AdapterInfo> ReadInfo(const GgufFile& file) {
  AdapterInfo info;
  ASSIGN_OR_RETURN(const absl::string_view architecture, file.GetString("general.architecture"));
  ASSIGN_OR_RETURN(const absl::string_view base, file.GetStringOr(kBaseName, ""));
  ASSIGN_OR_RETURN(const absl::string_view sha256, file.GetStringOr(kBaseSha256, ""));
  if (!sha256.empty()) RETURN_IF_ERROR(ParseDigest(sha256).status());
  ASSIGN_OR_RETURN(const uint64_t heads, file.GetUintOr(kNumHeads, 0));
  ASSIGN_OR_RETURN(const uint64_t kv_heads, file.GetUintOr(kNumKvHeads, 0));
  if (heads > static_cast<uint64_t>(kMaxAdapterHeads) ||
      kv_heads > static_cast<uint64_t>(kMaxAdapterHeads)) {
    return absl::InvalidArgumentError(
        absl::StrCat(heads, " heads and ", kv_heads, " kv heads; the limit is ", kMaxAdapterHeads));
  }
  info.architecture = std::string(architecture);
  info.base_model = std::string(base);
  info.base_model_sha256 = std::string(sha256);
  info.num_heads = static_cast<int64_t>(heads);
  info.num_kv_heads = static_cast<int64_t>(kv_heads);
  return info;
}

absl::Status AddTensor(const GgufTensor& tensor, LoraFactorMap* factors) {
  absl::string_view base = tensor.name;
  const bool is_b = absl::EndsWith(base, ".lora_b");
  if (!absl::ConsumeSuffix(&base, ".lora_a") && !absl::ConsumeSuffix(&base, ".lora_b")) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", tensor.name, " ends neither in .lora_a nor in .lora_b"));
  }
  if (base == "token_embd.weight") {
    return absl::UnimplementedError(
        absl::StrCat("tensor ", tensor.name, ": adapters on the token embedding"));
  }
  ASSIGN_OR_RETURN(const LoraSite site, SiteFromGguf(base));
  ASSIGN_OR_RETURN(const WeightMatrix matrix, tensor.AsMatrix());
  return AddFactor(site, is_b, {tensor.name, tensor.type, tensor.data, matrix.rows, matrix.cols},
                   factors);
}

// llama.cpp takes a missing or zero alpha for "no scaling": the same as alpha = rank.
absl::StatusOr<float> ReadAlpha(const GgufFile& file, const LoraFactorMap& factors) {
  ASSIGN_OR_RETURN(const double alpha, file.GetFloatOr("adapter.lora.alpha", 0));
  if (alpha != 0) return static_cast<float>(alpha);
  ASSIGN_OR_RETURN(const std::vector<LoraModule> modules, ModulesOf(factors));
  for (const LoraModule& module : modules) {
    if (module.rank == modules.front().rank) continue;
    return absl::UnimplementedError(
        "adapter.lora.alpha is missing or zero and the ranks differ; write the alpha");
  }
  return modules.empty() ? 0.0f : static_cast<float>(modules.front().rank);
}

absl::StatusOr<LoadedAdapter> ReadFrom(const GgufFile& file) {
  RETURN_IF_ERROR(ExpectString(file, "general.type", "adapter"));
  RETURN_IF_ERROR(ExpectString(file, "adapter.type", "lora"));
  LoadedAdapter loaded;
  ASSIGN_OR_RETURN(loaded.info, ReadInfo(file));
  LoraFactorMap factors;
  for (const GgufTensor& tensor : file.tensors()) RETURN_IF_ERROR(AddTensor(tensor, &factors));
  ASSIGN_OR_RETURN(const float alpha, ReadAlpha(file, factors));
  ASSIGN_OR_RETURN(loaded.adapter, AssembleAdapter(factors, loaded.info.architecture, alpha));
  return loaded;
}

std::string Bytes(absl::Span<const float> values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

}  // namespace

absl::StatusOr<LoadedAdapter> ReadAdapterGguf(absl::string_view path, Env& env) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> file, GgufFile::Open(path, env));
  absl::StatusOr<LoadedAdapter> loaded = ReadFrom(*file);
  if (loaded.ok() || absl::StartsWith(loaded.status().message(), path)) return loaded;
  return Annotate(loaded.status(), path);
}

absl::Status WriteAdapterGguf(const LoraAdapter& given, const AdapterInfo& info,
                              absl::string_view path, Env& env) {
  const absl::StatusOr<LoraAdapter> whole = WithoutParts(given);
  if (!whole.ok()) return Annotate(whole.status(), path);
  const LoraAdapter& adapter = *whole;
  const LoraSpec& spec = adapter.spec();
  GgufWriter writer;
  writer.SetString("general.architecture", spec.architecture());
  writer.SetString("general.type", "adapter");
  writer.SetString("adapter.type", "lora");
  writer.SetFloat32("adapter.lora.alpha", spec.alpha());
  if (!info.base_model.empty()) {
    writer.SetUint32("general.base_model.count", 1);
    writer.SetString(kBaseName, info.base_model);
  }
  if (!info.base_model_sha256.empty()) writer.SetString(kBaseSha256, info.base_model_sha256);
  if (info.num_heads > 0) writer.SetUint32(kNumHeads, static_cast<uint32_t>(info.num_heads));
  if (info.num_kv_heads > 0) {
    writer.SetUint32(kNumKvHeads, static_cast<uint32_t>(info.num_kv_heads));
  }
  for (size_t i = 0; i < spec.modules().size(); ++i) {
    const LoraModule& module = spec.modules()[i];
    const auto site = SiteFromGguf(module.tensor);
    if (!site.ok()) return Annotate(site.status(), path);
    writer.AddTensor(module.tensor + ".lora_a", DType::kF32, {module.in_features, module.rank},
                     Bytes(adapter.a(static_cast<int64_t>(i))));
    writer.AddTensor(module.tensor + ".lora_b", DType::kF32, {module.rank, module.out_features},
                     Bytes(BOutByRank(adapter, static_cast<int64_t>(i))));
  }
  return writer.WriteFile(path, env);
}

}  // namespace fedge
