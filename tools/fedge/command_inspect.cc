#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/byte_io.h"
#include "common/base/status.h"
#include "common/codec/update_codec.h"
#include "common/formats/adapter_files.h"
#include "common/formats/gguf.h"
#include "common/formats/safetensors.h"
#include "common/model/base_model.h"
#include "common/model/tokenizer.h"
#include "tools/fedge/commands.h"
#include "tools/report/progress.h"

namespace fedge {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kShownText = 200;  // characters of a metadata string in text output
constexpr size_t kMaxConfigBytes = 1 << 20;

struct InspectOptions {
  std::string path;
  bool tensors = true;
  bool check = false;
  OutputFormat format = OutputFormat::kText;
};

Json TensorJson(absl::string_view name, absl::string_view type, const std::vector<int64_t>& shape,
                size_t bytes) {
  Json tensor;
  tensor["name"] = std::string(name);
  tensor["type"] = std::string(type);
  tensor["shape"] = shape;
  tensor["bytes"] = bytes;
  return tensor;
}

// A metadata value; arrays only by their length (a vocabulary has a million bytes).
Json ValueJson(const GgufValue& value) {
  switch (value.type()) {
    case GgufType::kArray:
      return absl::StrCat("[", value.size(), " values]");
    case GgufType::kString:
      return std::string(value.AsString().value_or(""));
    case GgufType::kBool:
      return value.AsBool().value_or(false);
    case GgufType::kFloat32:
    case GgufType::kFloat64:
      return value.AsFloat().value_or(std::nan(""));
    default:
      break;
  }
  const absl::StatusOr<uint64_t> unsigned_value = value.AsUint();
  return unsigned_value.ok() ? Json(*unsigned_value) : Json(value.AsInt().value_or(0));
}

Json TokenizerJson(const GgufFile& file) {
  Json facts;
  facts["model"] = std::string(file.GetStringOr("tokenizer.ggml.model", "").value_or(""));
  const absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer = Tokenizer::FromGguf(file);
  if (!tokenizer.ok()) {
    facts["error"] = std::string(tokenizer.status().message());
    return facts;
  }
  facts["tokens"] = (*tokenizer)->vocab_size();
  facts["bos"] = (*tokenizer)->bos();
  facts["eos"] = (*tokenizer)->eos();
  facts["adds_bos"] = (*tokenizer)->adds_bos();
  facts["chat_template"] = !(*tokenizer)->chat_template().empty();
  return facts;
}

void AddAdapterFacts(const LoadedAdapter& loaded, Json& result) {
  const LoraSpec& spec = loaded.adapter.spec();
  int64_t low = spec.modules().front().rank;
  int64_t high = low;
  double squares = 0;
  for (const LoraModule& module : spec.modules()) {
    low = std::min(low, module.rank);
    high = std::max(high, module.rank);
  }
  for (const float value : loaded.adapter.values()) {
    squares += static_cast<double>(value) * static_cast<double>(value);
  }
  result["architecture"] = spec.architecture();
  result["rank"] = low == high ? Json(low) : Json(absl::StrCat(low, " to ", high));
  result["alpha"] = spec.alpha();
  result["modules"] = spec.modules().size();
  result["parameters"] = spec.num_parameters();
  result["norm"] = std::sqrt(squares);
  result["layout_sha256"] = spec.layout_hash().Hex();
  if (!loaded.info.base_model.empty()) result["base_model"] = loaded.info.base_model;
  if (!loaded.info.base_model_sha256.empty()) {
    result["base_model_sha256"] = loaded.info.base_model_sha256;
  }
}

absl::StatusOr<Json> InspectGguf(const std::string& path, Env& env) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> file, GgufFile::Open(path, env));
  Json result;
  const bool adapter = file->GetStringOr("general.type", "").value_or("") == "adapter";
  result["kind"] = adapter ? "LoRA adapter (GGUF)" : "model (GGUF)";
  result["path"] = path;
  result["bytes"] = file->bytes().size();
  result["gguf_version"] = file->version();
  if (adapter) {
    ASSIGN_OR_RETURN(const LoadedAdapter loaded, ReadAdapterGguf(path, env));
    AddAdapterFacts(loaded, result);
  } else {
    int64_t parameters = 0;
    for (const GgufTensor& tensor : file->tensors()) parameters += tensor.num_elements();
    result["architecture"] =
        std::string(file->GetStringOr("general.architecture", "").value_or(""));
    result["parameters"] = parameters;
    if (file->Find("tokenizer.ggml.model") != nullptr) result["tokenizer"] = TokenizerJson(*file);
  }
  Json metadata = Json::object();
  for (const std::string& key : file->keys()) metadata[key] = ValueJson(*file->Find(key));
  result["metadata"] = std::move(metadata);
  Json tensors = Json::array();
  for (const GgufTensor& tensor : file->tensors()) {
    tensors.push_back(
        TensorJson(tensor.name, DTypeName(tensor.type), tensor.dims, tensor.data.size()));
  }
  result["tensors"] = std::move(tensors);
  return result;
}

absl::StatusOr<Json> InspectSafetensors(const std::string& path, Env& env) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const SafetensorsFile> file,
                   SafetensorsFile::Open(path, env));
  Json result;
  result["kind"] = "safetensors";
  result["path"] = path;
  int64_t parameters = 0;
  Json tensors = Json::array();
  for (const SafetensorsTensor& tensor : file->tensors()) {
    parameters += tensor.num_elements();
    tensors.push_back(
        TensorJson(tensor.name, DTypeName(tensor.type), tensor.shape, tensor.data.size()));
  }
  result["parameters"] = parameters;
  result["metadata"] = file->metadata();
  result["tensors"] = std::move(tensors);
  return result;
}

absl::StatusOr<Json> InspectPeft(const std::string& dir, Env& env) {
  const std::string config_path = JoinPath(dir, "adapter_config.json");
  ASSIGN_OR_RETURN(const std::string text, env.ReadFile(config_path, kMaxConfigBytes));
  const Json config = Json::parse(text, nullptr, false);
  if (!config.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(config_path, ": not a JSON object"));
  }
  ASSIGN_OR_RETURN(Json result,
                   InspectSafetensors(JoinPath(dir, "adapter_model.safetensors"), env));
  result["kind"] = "LoRA adapter (PEFT folder)";
  result["path"] = dir;
  for (const char* const key : {"r", "lora_alpha", "base_model_name_or_path"}) {
    if (config.contains(key)) result[key] = config[key];
  }
  return result;
}

Json UpdateJson(const std::string& path, size_t bytes, const UpdateHeader& header) {
  Json result;
  result["kind"] = "encoded update";
  result["path"] = path;
  result["bytes"] = bytes;
  result["support"] = UpdateSupportName(header.support);
  result["slice"] = DescribeSlice(header.slice);
  result["value_bits"] = header.value_bits;
  result["round"] = header.round;
  result["base_version"] = header.base_version;
  result["num_examples"] = header.num_examples;
  result["parameters"] = header.num_parameters;
  result["values_sent"] = header.num_nonzero;
  result["bits_per_parameter"] =
      header.num_parameters == 0
          ? 0.0
          : 8.0 * static_cast<double>(bytes) / static_cast<double>(header.num_parameters);
  result["layout_sha256"] = header.layout_hash.Hex();
  result["base_model_sha256"] = header.base_model.Hex();
  return result;
}

bool LooksLikeSafetensors(absl::string_view bytes) {
  ByteReader reader(bytes);
  const uint64_t header = reader.Read<uint64_t>();
  return reader.ok() && header >= 2 && header <= reader.remaining() && bytes[8] == '{';
}

absl::StatusOr<Json> Inspect(const std::string& path, Env& env) {
  if (env.IsDirectory(path)) {
    if (env.Exists(JoinPath(path, "adapter_config.json"))) return InspectPeft(path, env);
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the folder holds no adapter_config.json; name a file in it"));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> file, env.Map(path));
  const absl::string_view bytes = file->bytes();
  if (absl::StartsWith(bytes, "GGUF")) return InspectGguf(path, env);
  if (absl::StartsWith(bytes, "FDGU")) {
    const absl::StatusOr<UpdateHeader> header = ReadUpdateHeader(bytes);
    if (!header.ok()) return Annotate(header.status(), path);
    return UpdateJson(path, bytes.size(), *header);
  }
  if (LooksLikeSafetensors(bytes)) return InspectSafetensors(path, env);
  return absl::InvalidArgumentError(absl::StrCat(
      path, ": not a GGUF, safetensors, adapter or update file (its first bytes are of none)"));
}

void PrintTensors(const Json& tensors, std::ostream& out) {
  out << "\n" << tensors.size() << " tensors\n";
  for (const Json& tensor : tensors) {
    std::vector<int64_t> shape = tensor["shape"];
    out << absl::StrFormat("  %-44s %-5s %10s  %s\n", tensor["name"].get<std::string>(),
                           tensor["type"].get<std::string>(),
                           FormatBytes(tensor["bytes"].get<uint64_t>()),
                           absl::StrCat("[", absl::StrJoin(shape, ", "), "]"));
  }
}

void PrintText(const Json& result, const CommandContext& context, bool with_tensors) {
  Json flat;
  for (const auto& [key, value] : result.items()) {
    if (!value.is_structured()) flat[key] = value;
  }
  if (result.contains("tokenizer")) {
    for (const auto& [key, value] : result["tokenizer"].items()) flat["tokenizer_" + key] = value;
  }
  context.PrintSummary(flat, OutputFormat::kText);
  if (result.contains("metadata") && !result["metadata"].empty()) {
    context.out() << "\nmetadata\n";
    for (const auto& [key, value] : result["metadata"].items()) {
      std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
      if (text.size() > kShownText) text = text.substr(0, kShownText) + " ...";
      context.out() << "  " << key << " = " << text << "\n";
    }
  }
  if (with_tensors && result.contains("tensors")) PrintTensors(result["tensors"], context.out());
  context.out() << std::flush;
}

// Whether Fedge can compute with the file, and all its weights are numbers. Adapters were checked
// when they were read.
absl::Status Check(const std::string& path, const Json& result, Env& env) {
  if (result["kind"] == "LoRA adapter (GGUF)") return absl::OkStatus();
  if (result["kind"] != "model (GGUF)") {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": --check reads GGUF models and adapters; this is a ",
                     result["kind"].get<std::string>()));
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<const BaseModel> model, BaseModel::Load(path, env));
  return model->CheckFinite();
}

absl::Status RunInspect(const InspectOptions& options, CommandContext& context) {
  ASSIGN_OR_RETURN(Json result, Inspect(options.path, context.env()));
  if (options.check) {
    RETURN_IF_ERROR(Check(options.path, result, context.env()));
    result["checked"] = true;
  }
  if (options.format == OutputFormat::kText) {
    PrintText(result, context, options.tensors);
  } else {
    if (!options.tensors) result.erase("tensors");
    context.PrintJson(result);
  }
  return absl::OkStatus();
}

}  // namespace

void RegisterInspect(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command =
      app.add_subcommand("inspect", "Show what a model, adapter or update file holds");
  command->add_option("file", options->path, "GGUF, safetensors, PEFT folder or encoded update")
      ->required()
      ->type_name("FILE");
  command->add_flag("--no-tensors{false}", options->tensors, "Leave the tensor table out");
  command->add_flag("--check", options->check,
                    "Also load the model and read every weight: fails on tensors that are missing, "
                    "misshapen or not finite");
  AddFormatOption(command, options->format);
  command->footer("Example:\n  fedge inspect model.gguf --check");
  context.AddCommand(command, [options, &context] { return RunInspect(*options, context); });
}

}  // namespace fedge
