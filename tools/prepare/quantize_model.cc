#include "tools/prepare/quantize_model.h"

#include <filesystem>
#include <memory>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/formats/gguf.h"
#include "common/formats/gguf_file_writer.h"
#include "common/tensor/quantize.h"
#include "tools/prepare/model_outline.h"

namespace fedge {
namespace {

constexpr char kFileType[] = "general.file_type";
constexpr char kQuantizationVersion[] = "general.quantization_version";

// Also under another name (a link), which only the file system knows.
bool IsSameFile(const std::string& a, const std::string& b) {
  std::error_code error;
  return a == b || std::filesystem::equivalent(a, b, error);
}

absl::Status CheckInput(const GgufFile& file) {
  ASSIGN_OR_RETURN(const absl::string_view type, file.GetStringOr("general.type", "model"));
  if (type == "adapter") {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": is an adapter, not a model; adapters stay in F32"));
  }
  ASSIGN_OR_RETURN(const uint64_t parts, file.GetUintOr("split.count", 1));
  if (parts > 1) {
    return absl::UnimplementedError(
        absl::StrCat(file.path(), ": one of ", parts,
                     " parts of a model; merge them first with llama-gguf-split --merge"));
  }
  return absl::OkStatus();
}

// Every value in its place but the two that tell the types.
GgufWriter CopyMetadata(const GgufFile& file, uint32_t file_type) {
  GgufWriter writer;
  for (const std::string& key : file.keys()) {
    if (key == kFileType) {
      writer.SetUint32(kFileType, file_type);
    } else if (key == kQuantizationVersion) {
      writer.SetUint32(kQuantizationVersion, kGgufQuantizationVersion);
    } else {
      writer.CopyValue(key, *file.Find(key));
    }
  }
  if (file.Find(kQuantizationVersion) == nullptr) {
    writer.SetUint32(kQuantizationVersion, kGgufQuantizationVersion);
  }
  if (file.Find(kFileType) == nullptr) writer.SetUint32(kFileType, file_type);
  return writer;
}

absl::StatusOr<std::vector<GgufTensorShape>> NewShapes(const GgufFile& file,
                                                       const QuantizeModelOptions& options) {
  std::vector<GgufTensorShape> shapes;
  for (const GgufTensor& tensor : file.tensors()) {
    shapes.push_back({tensor.name, tensor.type, tensor.dims});
  }
  const std::vector<DType> types = ChooseTypes(options.mix, shapes);
  for (size_t i = 0; i < shapes.size(); ++i) {
    const bool quantized = BlockElements(shapes[i].type) > 1;
    if (quantized && types[i] != shapes[i].type && !options.allow_requantize) {
      return absl::InvalidArgumentError(
          absl::StrCat(file.path(), ": tensor ", shapes[i].name, " is ", DTypeName(shapes[i].type),
                       " already; quantize a file of F32, F16 or BF16 weights, or accept the loss "
                       "with --allow-requantize"));
    }
    shapes[i].type = types[i];
  }
  return shapes;
}

}  // namespace

absl::StatusOr<QuantizeModelResult> QuantizeModel(const QuantizeModelOptions& options,
                                                  const PrepareEvents& events, Env& env) {
  if (IsSameFile(options.model_file, options.output_file)) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.output_file, ": is the input too; write to another file"));
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> file,
                   GgufFile::Open(options.model_file, env));
  RETURN_IF_ERROR(CheckInput(*file));
  ASSIGN_OR_RETURN(const std::vector<GgufTensorShape> shapes, NewShapes(*file, options));
  PrepareProgress progress;
  progress.tensors = static_cast<int64_t>(shapes.size());
  for (const GgufTensorShape& shape : shapes) progress.bytes += shape.bytes();

  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFileWriter> writer,
                   GgufFileWriter::Create(options.output_file,
                                          CopyMetadata(*file, options.mix.file_type), shapes, env));
  ThreadPool pool(options.threads);
  TensorStream stream(*writer, pool);
  for (size_t i = 0; i < shapes.size(); ++i) {
    progress.tensor = static_cast<int64_t>(i);
    progress.name = shapes[i].name;
    if (events && !events(progress)) {
      return absl::CancelledError("stopped; nothing was written");
    }
    const GgufTensor& tensor = file->tensors()[i];
    absl::Status status;
    if (tensor.type == shapes[i].type) {
      status = stream.Copy(shapes[i], tensor.data);
    } else {
      const auto* const data = reinterpret_cast<const uint8_t*>(tensor.data.data());
      const int64_t row_bytes = RowBytes(tensor.type, tensor.dims[0]);
      status = stream.Encode(shapes[i], [&](int64_t row, absl::Span<float> out) {
        Dequantize(tensor.type, data + row * row_bytes, static_cast<int64_t>(out.size()),
                   out.data());
      });
    }
    file->Release(tensor.data);
    if (absl::IsInvalidArgument(status)) return Annotate(status, file->path());
    RETURN_IF_ERROR(status);
    progress.bytes_done += shapes[i].bytes();
  }
  RETURN_IF_ERROR(writer->Finish());
  return QuantizeModelResult{file->bytes().size(), writer->file_bytes(), stream.totals()};
}

}  // namespace fedge
