#include "tools/prepare/random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/formats/gguf_file_writer.h"
#include "common/tensor/quantize.h"
#include "tools/prepare/generated_vocabulary.h"
#include "tools/prepare/tensor_types.h"

namespace fedge {
namespace {

constexpr double kDeviation = 0.02;  // of matrices (Radford et al. 2019)
// Encoded values to draw from, and how many are drawn at once: whole blocks of every type, but for
// matrices whose rows are shorter.
constexpr int64_t kPoolValues = int64_t{1} << 20;
constexpr int64_t kDrawnValues = 256;
constexpr size_t kWrittenBytes = size_t{1} << 22;

ModelOutline TinyOutline() {
  ModelOutline outline;
  outline.hidden = 256;
  outline.layers = 4;
  outline.heads = 4;
  outline.kv_heads = 2;
  outline.feed_forward = 512;
  outline.vocabulary = 1024;
  outline.context = 512;
  return outline;
}

ModelOutline HalfBillionOutline() {
  ModelOutline outline;
  outline.hidden = 896;
  outline.layers = 24;
  outline.heads = 14;
  outline.kv_heads = 2;
  outline.feed_forward = 4864;
  outline.vocabulary = 151936;
  outline.context = 32768;
  outline.rope_base = 1e6f;
  return outline;
}

ModelOutline BillionOutline() {
  ModelOutline outline;
  outline.hidden = 2048;
  outline.layers = 16;
  outline.heads = 32;
  outline.kv_heads = 8;
  outline.feed_forward = 8192;
  outline.vocabulary = 128256;
  outline.context = 131072;
  outline.rope_base = 500000;
  outline.rms_epsilon = 1e-5f;
  return outline;
}

// Encoded blocks of N(0, deviation) in which tensors of one type are dealt.
std::string MakePool(DType type, double deviation, uint64_t seed) {
  Rng rng = Rng::Stream(seed, absl::StrCat("pool ", DTypeName(type)));
  std::vector<float> values(static_cast<size_t>(kPoolValues));
  for (float& value : values) value = static_cast<float>(deviation * rng.Normal());
  std::string pool(static_cast<size_t>(RowBytes(type, kPoolValues)), '\0');
  FEDGE_CHECK(Quantize(type, values, reinterpret_cast<uint8_t*>(pool.data())).ok());
  return pool;
}

class RandomTensors {
 public:
  RandomTensors(const RandomModelOptions& options, GgufFileWriter& file)
      : options_(options), file_(file) {}

  absl::Status Write(const OutlineTensor& tensor, const GgufTensorShape& shape) {
    if (tensor.is_matrix()) return WriteMatrix(shape);
    std::vector<float> values(static_cast<size_t>(shape.dims[0]), 1.0f);
    if (tensor.values != nullptr) {
      values = *tensor.values;
    } else if (absl::EndsWith(shape.name, ".bias")) {
      Rng rng = Rng::Stream(options_.seed, shape.name);
      for (float& value : values) value = static_cast<float>(kDeviation * rng.Normal());
    }
    return file_.Append(absl::string_view(reinterpret_cast<const char*>(values.data()),
                                          values.size() * sizeof(float)));
  }

 private:
  absl::Status WriteMatrix(const GgufTensorShape& shape) {
    const bool residual =
        absl::StrContains(shape.name, "attn_output") || absl::StrContains(shape.name, "ffn_down");
    std::string& pool = pools_[{shape.type, residual}];
    if (pool.empty()) {
      const double deviation =
          residual ? kDeviation / std::sqrt(2.0 * static_cast<double>(options_.outline.layers))
                   : kDeviation;
      pool = MakePool(shape.type, deviation, options_.seed);
    }
    // What is drawn has whole blocks whatever the rows are, for rows stand behind one another.
    const auto drawn = static_cast<size_t>(RowBytes(shape.type, kDrawnValues));
    const uint64_t choices = pool.size() / drawn;
    Rng rng = Rng::Stream(options_.seed, shape.name);
    std::string bytes;
    for (auto left = static_cast<size_t>(shape.bytes()); left > 0;) {
      bytes.clear();
      while (left > 0 && bytes.size() < kWrittenBytes) {
        const size_t size = std::min(left, drawn);
        bytes.append(pool, static_cast<size_t>(rng.Below(choices)) * drawn, size);
        left -= size;
      }
      RETURN_IF_ERROR(file_.Append(bytes));
    }
    return absl::OkStatus();
  }

  const RandomModelOptions& options_;
  GgufFileWriter& file_;
  std::map<std::pair<DType, bool>, std::string> pools_;  // by type and whether residual
};

}  // namespace

absl::StatusOr<ModelOutline> MakeNamedOutline(const NamedOutline& named) {
  ModelOutline outline;
  absl::string_view own_family = "llama";
  if (named.shape == "tiny") {
    outline = TinyOutline();
  } else if (named.shape == "0.5b") {
    outline = HalfBillionOutline();
    own_family = "qwen2";
  } else if (named.shape == "1b") {
    outline = BillionOutline();
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("no shape '", named.shape, "'; there are tiny, 0.5b and 1b"));
  }
  outline.family =
      FindFamilyLayout(named.family.empty() ? own_family : absl::string_view(named.family));
  if (outline.family == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("no family '", named.family, "'; there are ", FamilyNames()));
  }
  outline.head_dim = outline.hidden / outline.heads;
  outline.rope_dim = outline.head_dim;
  if (named.family == "gemma3") {
    outline.sliding_window = 512;
    // llama.cpp cannot run a model without a global layer.
    outline.layers = std::max(outline.layers, outline.sliding_pattern);
    outline.rope_base = 1e6f;
  }
  return outline;
}

absl::StatusOr<RandomModelResult> MakeRandomModel(const RandomModelOptions& options, Env& env) {
  const ModelOutline& outline = options.outline;
  RETURN_IF_ERROR(CheckOutline(outline));
  ASSIGN_OR_RETURN(const TokenizerData vocabulary,
                   GenerateVocabulary(outline.family->architecture, outline.vocabulary));
  GgufWriter metadata;
  metadata.SetString("general.architecture", outline.family->architecture);
  metadata.SetString("general.type", "model");
  metadata.SetString("general.name", options.name);
  WriteOutline(outline, metadata);
  metadata.SetUint32("general.file_type", GgufFileType(options.type));
  metadata.SetUint32("general.quantization_version", kGgufQuantizationVersion);
  WriteTokenizer(vocabulary, metadata);

  const std::vector<OutlineTensor> tensors = OutlineTensors(outline);
  std::vector<GgufTensorShape> shapes;
  for (const OutlineTensor& tensor : tensors) {
    shapes.push_back({tensor.name, DType::kF32, tensor.dims});
  }
  QuantizationMix mix;
  mix.type = options.type;
  mix.output = options.output_type;
  const std::vector<DType> types = ChooseTypes(mix, shapes);
  RandomModelResult result;
  for (size_t i = 0; i < shapes.size(); ++i) {
    shapes[i].type = types[i];
    result.parameters += shapes[i].num_elements();
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFileWriter> file,
                   GgufFileWriter::Create(options.output_file, metadata, shapes, env));
  RandomTensors writer(options, *file);
  for (size_t i = 0; i < tensors.size(); ++i) {
    RETURN_IF_ERROR(writer.Write(tensors[i], shapes[i]));
  }
  RETURN_IF_ERROR(file->Finish());
  result.bytes = file->file_bytes();
  return result;
}

}  // namespace fedge
