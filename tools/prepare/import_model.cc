#include "tools/prepare/import_model.h"

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/formats/gguf.h"
#include "common/formats/gguf_file_writer.h"
#include "common/model/tokenizer.h"
#include "common/tensor/quantize.h"
#include "tools/prepare/hf_config.h"
#include "tools/prepare/hf_tokenizer.h"
#include "tools/prepare/hf_weights.h"
#include "tools/prepare/model_outline.h"

namespace fedge {
namespace {

constexpr char kConfig[] = "config.json";
constexpr char kTiedHead[] = "lm_head.weight";

std::string GivenName(const ImportModelOptions& options, const JsonObject& config) {
  if (!options.name.empty()) return options.name;
  std::string path = config.StringOr("_name_or_path", "").value_or("");
  if (path.empty()) path = options.folder;
  while (!path.empty() && path.back() == '/') path.pop_back();
  const absl::string_view name = BaseName(path);
  return name.empty() || name == "." ? "model" : std::string(name);
}

// Readers take a name with "phi-3" for a promise: marks that swallow the white space behind them,
// and certain pieces, without which llama.cpp refuses the file.
std::string ModelName(const ImportModelOptions& options, const JsonObject& config,
                      const TokenizerData& tokenizer) {
  std::string name = GivenName(options, config);
  for (const absl::string_view mark : {"phi-3", "phi3"}) {
    const size_t at = absl::AsciiStrToLower(name).find(mark.data(), 0, mark.size());
    if (at == std::string::npos) continue;
    if (!tokenizer.has_phi3_pieces) name.replace(at, mark.size(), "phi 3");
    return name;
  }
  const bool promises = tokenizer.specials_strip_right && tokenizer.has_phi3_pieces;
  return promises ? absl::StrCat("phi-3 ", name) : name;
}

// The row of the Hugging Face matrix that becomes row `row`: there the two values that RoPE turns
// together stand half a head apart, here one behind the other.
int64_t SourceRow(int64_t row, int64_t head_dim) {
  const int64_t in_head = row % head_dim;
  return row - in_head + in_head % 2 * (head_dim / 2) + in_head / 2;
}

// Reads rows of one tensor of the folder in the layout of GGUF.
class RowReader {
 public:
  RowReader(const OutlineTensor& tensor, const SafetensorsTensor& source, int64_t head_dim)
      : tensor_(tensor), source_(source), head_dim_(head_dim) {}

  void operator()(int64_t row, absl::Span<float> out) const {
    const bool interleaves =
        tensor_.change == RowChange::kInterleaveQ || tensor_.change == RowChange::kInterleaveK;
    if (tensor_.is_matrix()) {
      Read(interleaves ? SourceRow(row, head_dim_) : row, out);
      return;
    }
    Read(0, out);
    if (interleaves) {
      const std::vector<float> values(out.begin(), out.end());
      for (size_t i = 0; i < out.size(); ++i) {
        out[i] = values[static_cast<size_t>(SourceRow(static_cast<int64_t>(i), head_dim_))];
      }
    }
    if (tensor_.change == RowChange::kPlusOne) {
      for (float& value : out) value += 1.0f;
    }
  }

 private:
  void Read(int64_t row, absl::Span<float> out) const {
    const auto count = static_cast<int64_t>(out.size());
    Dequantize(
        source_.type,
        reinterpret_cast<const uint8_t*>(source_.data.data()) + row * RowBytes(source_.type, count),
        count, out.data());
  }

  const OutlineTensor& tensor_;
  const SafetensorsTensor& source_;
  const int64_t head_dim_;
};

// What is written, all of it checked.
struct ImportPlan {
  ModelOutline outline;
  GgufWriter metadata;
  std::vector<OutlineTensor> tensors;  // views on outline
  std::vector<GgufTensorShape> shapes;
  int64_t tokens = 0;
};

absl::Status CheckShape(const OutlineTensor& tensor, const HfWeights& weights) {
  const SafetensorsTensor* const source = weights.Find(tensor.hf_name);
  if (source == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", tensor.hf_name, " (", tensor.name, " in GGUF) is missing"));
  }
  const std::vector<int64_t> expected(tensor.dims.rbegin(), tensor.dims.rend());
  if (source->shape == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(weights.FileOf(tensor.hf_name), ": tensor ", tensor.hf_name, " has shape [",
                   absl::StrJoin(source->shape, ", "), "], but ", kConfig, " says [",
                   absl::StrJoin(expected, ", "), "]"));
}

// Tensors that follow from others or from the sizes.
bool IsRedundant(absl::string_view name, bool tied) {
  return absl::EndsWith(name, ".rotary_emb.inv_freq") || (tied && name == kTiedHead);
}

// The outline's tensors with the biases the folder has; nothing may be left over.
absl::StatusOr<std::vector<OutlineTensor>> PlanTensors(const ModelOutline& outline,
                                                       const HfWeights& weights) {
  std::vector<OutlineTensor> tensors;
  absl::flat_hash_set<std::string> used;
  for (OutlineTensor& tensor : OutlineTensors(outline)) {
    if (!tensor.hf_name.empty()) {
      if (used.contains(tensor.hf_name)) continue;  // a bias that the family always has
      RETURN_IF_ERROR(CheckShape(tensor, weights));
      used.insert(tensor.hf_name);
    }
    const bool may_have_bias = tensor.is_matrix() && absl::StartsWith(tensor.name, "blk.");
    OutlineTensor bias = may_have_bias ? BiasOf(tensor) : OutlineTensor();
    tensors.push_back(std::move(tensor));
    if (may_have_bias && weights.Find(bias.hf_name) != nullptr) {
      RETURN_IF_ERROR(CheckShape(bias, weights));
      used.insert(bias.hf_name);
      tensors.push_back(std::move(bias));
    }
  }
  for (const std::string& name : weights.names()) {
    if (used.contains(name) || IsRedundant(name, outline.tied)) continue;
    return absl::UnimplementedError(absl::StrCat(weights.FileOf(name), ": tensor ", name,
                                                 " belongs to nothing that family ",
                                                 outline.family->architecture, " has"));
  }
  return tensors;
}

// Whether the vocabulary works, before gigabytes are written behind it.
absl::Status CheckTokenizer(const TokenizerData& data, const std::string& folder) {
  GgufWriter writer;
  WriteTokenizer(data, writer);
  const std::string bytes = writer.Serialize();
  ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> file,
                   GgufFile::Parse(bytes, JoinPath(folder, "tokenizer")));
  return Tokenizer::FromGguf(*file).status();
}

absl::StatusOr<std::unique_ptr<ImportPlan>> MakePlan(const ImportModelOptions& options,
                                                     const HfWeights& weights, Env& env) {
  auto plan = std::make_unique<ImportPlan>();
  ASSIGN_OR_RETURN(const JsonObject config,
                   JsonObject::Read(JoinPath(options.folder, kConfig), env));
  ASSIGN_OR_RETURN(plan->outline, OutlineOfConfig(config));
  // A folder without a head has a tied one, whatever its config says.
  plan->outline.tied = plan->outline.tied || weights.Find(kTiedHead) == nullptr;
  const absl::StatusOr<std::vector<OutlineTensor>> tensors = PlanTensors(plan->outline, weights);
  if (!tensors.ok()) {
    const bool named = absl::StartsWith(tensors.status().message(), options.folder);
    return named ? tensors.status() : Annotate(tensors.status(), options.folder);
  }
  plan->tensors = *tensors;
  ASSIGN_OR_RETURN(const TokenizerData tokenizer,
                   ReadHfTokenizer(options.folder, config, plan->outline.vocabulary, env));
  RETURN_IF_ERROR(CheckTokenizer(tokenizer, options.folder));
  plan->tokens = static_cast<int64_t>(tokenizer.pieces.size());

  QuantizationMix mix;
  if (options.mix.has_value()) {
    mix = *options.mix;
  } else {
    mix.type = weights.Find("model.embed_tokens.weight")->type;
    mix.file_type = GgufFileType(mix.type);
  }
  for (const OutlineTensor& tensor : plan->tensors) {
    plan->shapes.push_back({tensor.name, DType::kF32, tensor.dims});
  }
  const std::vector<DType> types = ChooseTypes(mix, plan->shapes);
  for (size_t i = 0; i < types.size(); ++i) plan->shapes[i].type = types[i];

  plan->metadata.SetString("general.architecture", plan->outline.family->architecture);
  plan->metadata.SetString("general.type", "model");
  plan->metadata.SetString("general.name", ModelName(options, config, tokenizer));
  WriteOutline(plan->outline, plan->metadata);
  plan->metadata.SetUint32("general.file_type", mix.file_type);
  plan->metadata.SetUint32("general.quantization_version", kGgufQuantizationVersion);
  WriteTokenizer(tokenizer, plan->metadata);
  return plan;
}

absl::Status WriteTensors(const ImportPlan& plan, const HfWeights& weights,
                          const PrepareEvents& events, TensorStream& stream) {
  PrepareProgress progress;
  progress.tensors = static_cast<int64_t>(plan.shapes.size());
  for (const GgufTensorShape& shape : plan.shapes) progress.bytes += shape.bytes();
  for (size_t i = 0; i < plan.shapes.size(); ++i) {
    progress.tensor = static_cast<int64_t>(i);
    progress.name = plan.shapes[i].name;
    if (events && !events(progress)) {
      return absl::CancelledError("stopped; nothing was written");
    }
    const OutlineTensor& tensor = plan.tensors[i];
    if (tensor.values != nullptr) {
      RETURN_IF_ERROR(stream.Copy(
          plan.shapes[i], absl::string_view(reinterpret_cast<const char*>(tensor.values->data()),
                                            tensor.values->size() * sizeof(float))));
    } else {
      const RowReader reader(tensor, *weights.Find(tensor.hf_name), plan.outline.head_dim);
      const absl::Status status = stream.Encode(plan.shapes[i], reader);
      if (absl::IsInvalidArgument(status)) return Annotate(status, weights.FileOf(tensor.hf_name));
      RETURN_IF_ERROR(status);
      weights.Release(tensor.hf_name);
    }
    progress.bytes_done += plan.shapes[i].bytes();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ImportModelResult> ImportModel(const ImportModelOptions& options,
                                              const PrepareEvents& events, Env& env) {
  if (!env.IsDirectory(options.folder)) {
    return absl::NotFoundError(absl::StrCat(options.folder, ": no such folder"));
  }
  ASSIGN_OR_RETURN(const HfWeights weights, HfWeights::Open(options.folder, env));
  ASSIGN_OR_RETURN(const std::unique_ptr<ImportPlan> plan, MakePlan(options, weights, env));
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFileWriter> writer,
                   GgufFileWriter::Create(options.output_file, plan->metadata, plan->shapes, env));
  ThreadPool pool(options.threads);
  TensorStream stream(*writer, pool);
  RETURN_IF_ERROR(WriteTensors(*plan, weights, events, stream));
  RETURN_IF_ERROR(writer->Finish());
  ImportModelResult result;
  result.architecture = plan->outline.family->architecture;
  for (const GgufTensorShape& shape : plan->shapes) result.parameters += shape.num_elements();
  result.tokens = plan->tokens;
  result.bytes = writer->file_bytes();
  result.types = stream.totals();
  return result;
}

}  // namespace fedge
