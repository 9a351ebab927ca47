#include "common/formats/gguf_writer.h"

#include <utility>

#include "common/base/status.h"

namespace fedge {
namespace {

void WriteString(absl::string_view text, ByteWriter* out) {
  out->Write(static_cast<uint64_t>(text.size()));
  out->WriteBytes(text);
}

void WriteType(GgufType type, ByteWriter* out) { out->Write(static_cast<uint32_t>(type)); }

void WriteArrayHead(GgufType element_type, uint64_t count, ByteWriter* out) {
  WriteType(GgufType::kArray, out);
  WriteType(element_type, out);
  out->Write(count);
}

}  // namespace

void GgufWriter::StartValue(absl::string_view key) {
  FEDGE_CHECK(!key.empty() && key.size() <= kMaxGgufKeyBytes);
  FEDGE_CHECK(keys_.insert(std::string(key)).second, "key ", key, " is set twice");
  WriteString(key, &values_);
}

template <typename T>
void GgufWriter::SetScalar(absl::string_view key, GgufType type, T value) {
  StartValue(key);
  WriteType(type, &values_);
  values_.Write(value);
}

template <typename T>
void GgufWriter::SetArray(absl::string_view key, GgufType type, absl::Span<const T> values) {
  StartValue(key);
  WriteArrayHead(type, values.size(), &values_);
  for (const T value : values) values_.Write(value);
}

void GgufWriter::SetUint32(absl::string_view key, uint32_t value) {
  SetScalar(key, GgufType::kUint32, value);
}

void GgufWriter::SetUint64(absl::string_view key, uint64_t value) {
  SetScalar(key, GgufType::kUint64, value);
}

void GgufWriter::SetInt32(absl::string_view key, int32_t value) {
  SetScalar(key, GgufType::kInt32, value);
}

void GgufWriter::SetFloat32(absl::string_view key, float value) {
  SetScalar(key, GgufType::kFloat32, value);
}

void GgufWriter::SetBool(absl::string_view key, bool value) {
  SetScalar(key, GgufType::kBool, static_cast<uint8_t>(value));
}

void GgufWriter::SetString(absl::string_view key, absl::string_view value) {
  StartValue(key);
  WriteType(GgufType::kString, &values_);
  WriteString(value, &values_);
}

void GgufWriter::SetStrings(absl::string_view key, absl::Span<const std::string> values) {
  StartValue(key);
  WriteArrayHead(GgufType::kString, values.size(), &values_);
  for (const std::string& value : values) WriteString(value, &values_);
}

void GgufWriter::SetFloat32s(absl::string_view key, absl::Span<const float> values) {
  SetArray(key, GgufType::kFloat32, values);
}

void GgufWriter::SetInt32s(absl::string_view key, absl::Span<const int32_t> values) {
  SetArray(key, GgufType::kInt32, values);
}

void GgufWriter::CopyValue(absl::string_view key, const GgufValue& value) {
  if (key == "general.alignment") return;
  StartValue(key);
  if (value.type() == GgufType::kArray) {
    WriteArrayHead(value.element_type(), value.size(), &values_);
  } else {
    WriteType(value.type(), &values_);
    if (value.type() == GgufType::kString) {
      values_.Write(static_cast<uint64_t>(value.payload().size()));
    }
  }
  values_.WriteBytes(value.payload());
}

int64_t GgufTensorShape::num_elements() const {
  int64_t product = 1;
  for (const int64_t dim : dims) product *= dim;
  return product;
}

int64_t GgufTensorShape::bytes() const {
  FEDGE_CHECK(!dims.empty() && dims[0] % BlockElements(type) == 0, name);
  return RowBytes(type, num_elements());
}

void GgufWriter::AddTensor(absl::string_view name, DType type, std::vector<int64_t> dims,
                           std::string data) {
  GgufTensorShape tensor = {std::string(name), type, std::move(dims)};
  FEDGE_CHECK(!tensor.dims.empty() && tensor.dims.size() <= kMaxGgufDims, name);
  FEDGE_CHECK(data.size() == static_cast<uint64_t>(tensor.bytes()), "tensor ", name, ": ",
              data.size(), " bytes instead of ", tensor.bytes());
  FEDGE_CHECK(tensor_names_.insert(tensor.name).second, "tensor ", name, " is added twice");
  tensors_.push_back(std::move(tensor));
  data_.push_back(std::move(data));
}

std::string GgufWriter::SerializeHead(absl::Span<const GgufTensorShape> tensors) const {
  FEDGE_CHECK(tensors_.empty());
  return Head(tensors);
}

std::string GgufWriter::Head(absl::Span<const GgufTensorShape> tensors) const {
  ByteWriter out;
  out.WriteBytes("GGUF");
  out.Write(uint32_t{3});
  out.Write(static_cast<uint64_t>(tensors.size()));
  out.Write(static_cast<uint64_t>(keys_.size()));
  out.WriteBytes(values_.bytes());
  uint64_t offset = 0;
  for (const GgufTensorShape& tensor : tensors) {
    const int64_t bytes = tensor.bytes();
    FEDGE_CHECK(!tensor.name.empty() && tensor.name.size() <= kMaxGgufTensorNameBytes,
                "tensor name ", tensor.name);
    FEDGE_CHECK(bytes > 0 && tensor.dims.size() <= kMaxGgufDims, tensor.name);
    WriteString(tensor.name, &out);
    out.Write(static_cast<uint32_t>(tensor.dims.size()));
    for (const int64_t dim : tensor.dims) out.Write(dim);
    out.Write(static_cast<uint32_t>(tensor.type));
    out.Write(offset);
    offset += (static_cast<uint64_t>(bytes) + kGgufWriterAlignment - 1) / kGgufWriterAlignment *
              kGgufWriterAlignment;
  }
  out.PadTo(kGgufWriterAlignment);
  return std::move(out).Take();
}

std::string GgufWriter::Serialize() const {
  ByteWriter out;
  out.WriteBytes(Head(tensors_));
  for (const std::string& data : data_) {
    out.WriteBytes(data);
    out.PadTo(kGgufWriterAlignment);
  }
  return std::move(out).Take();
}

absl::Status GgufWriter::WriteFile(absl::string_view path, Env& env) const {
  return env.WriteFileAtomic(path, Serialize());
}

}  // namespace fedge
