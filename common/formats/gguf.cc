#include "common/formats/gguf.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "common/base/byte_io.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr absl::string_view kMagic = "GGUF";
constexpr uint64_t kHeaderBytes = 24;
// The smallest entries there can be: length, one character, type, one byte of value; and length,
// one character, number of dimensions, one dimension, type, offset.
constexpr uint64_t kMinKeyValueBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMinAlignment = 8;  // what the format demands; element loads rely on it

// Foreign bytes in a message: printable and short.
std::string Quoted(absl::string_view text) {
  constexpr size_t kMaxShown = 80;
  return absl::StrCat("'", absl::CHexEscape(text.substr(0, kMaxShown)),
                      text.size() > kMaxShown ? "...'" : "'");
}

bool HasControlCharacter(absl::string_view text) {
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_iscntrl(static_cast<unsigned char>(c)); });
}

// Bytes of an element of fixed size; 0 for strings, arrays and unknown types.
uint64_t ScalarBytes(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    default:
      return 0;
  }
}

}  // namespace

// One pass over the bytes; the messages say at which byte it stopped.
class GgufParser {
 public:
  GgufParser(absl::string_view bytes, absl::string_view name, GgufFile* file)
      : reader_(bytes), size_(bytes.size()), file_(file) {
    file_->path_ = std::string(name);
    file_->bytes_ = bytes;
  }

  absl::Status Parse() {
    RETURN_IF_ERROR(ParseHeader());
    for (uint64_t i = 0; i < num_keys_; ++i) RETURN_IF_ERROR(ParseKeyValue(i));
    RETURN_IF_ERROR(ParseAlignment());
    offsets_.reserve(num_tensors_);
    for (uint64_t i = 0; i < num_tensors_; ++i) RETURN_IF_ERROR(ParseTensor(i));
    return PlaceTensors();
  }

 private:
  template <typename... Pieces>
  absl::Status Malformed(const Pieces&... pieces) const {
    return absl::InvalidArgumentError(
        absl::StrCat(file_->path_, ": at byte ", position_, ": ", pieces...));
  }
  template <typename... Pieces>
  absl::Status Unsupported(const Pieces&... pieces) const {
    return absl::UnimplementedError(absl::StrCat(file_->path_, ": ", pieces...));
  }
  // Remembers the place of what is parsed next, for messages.
  void Mark() { position_ = size_ - reader_.remaining(); }

  absl::Status ParseHeader();
  absl::StatusOr<absl::string_view> ParseName(absl::string_view what, uint64_t limit);
  absl::Status ParseKeyValue(uint64_t number);
  absl::Status ParseValue(absl::string_view key, GgufValue* value);
  absl::Status ParseArray(absl::string_view key, GgufValue* value);
  absl::Status ParseStringElements(absl::string_view key, uint64_t count);
  absl::Status ParseAlignment();
  absl::Status ParseTensor(uint64_t number);
  absl::Status ParseDims(GgufTensor* tensor);
  absl::Status PlaceTensors();
  absl::Status CheckOverlap(const std::vector<size_t>& order) const;

  ByteReader reader_;
  uint64_t size_;
  GgufFile* file_;
  uint64_t position_ = 0;
  uint64_t num_keys_ = 0;
  uint64_t num_tensors_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
  std::vector<uint64_t> offsets_;  // of the tensors, in the data section
};

absl::Status GgufParser::ParseHeader() {
  if (size_ < kHeaderBytes) {
    return Malformed("the file has ", size_, " bytes, fewer than a GGUF header's ", kHeaderBytes);
  }
  const absl::string_view magic = reader_.ReadBytes(kMagic.size());
  if (magic != kMagic) return Malformed("not a GGUF file: it starts with ", Quoted(magic));
  const uint32_t version = reader_.Read<uint32_t>();
  if (version != 2 && version != 3) {
    if ((version & 0xffffu) == 0 && version != 0) {
      return Unsupported("a big-endian GGUF file; convert it to little-endian");
    }
    return Unsupported("GGUF version ", version,
                       "; versions 2 and 3 are supported, convert the model again with a current "
                       "llama.cpp");
  }
  file_->version_ = version;
  Mark();
  num_tensors_ = reader_.Read<uint64_t>();
  num_keys_ = reader_.Read<uint64_t>();
  const uint64_t left = reader_.remaining();
  if (num_keys_ > left / kMinKeyValueBytes || num_keys_ > kMaxGgufKeys) {
    return Malformed(num_keys_, " metadata keys, with ", left, " bytes left and a limit of ",
                     kMaxGgufKeys);
  }
  if (num_tensors_ > left / kMinTensorBytes || num_tensors_ > kMaxGgufTensors) {
    return Malformed(num_tensors_, " tensors, with ", left, " bytes left and a limit of ",
                     kMaxGgufTensors);
  }
  return absl::OkStatus();
}

// `what` is "key" or "tensor name".
absl::StatusOr<absl::string_view> GgufParser::ParseName(absl::string_view what, uint64_t limit) {
  const uint64_t size = reader_.Read<uint64_t>();
  if (!reader_.ok() || size > reader_.remaining()) {
    return Malformed("the ", what, " does not fit the file");
  }
  if (size == 0 || size > limit) {
    return Malformed("a ", what, " of ", size, " bytes; 1 to ", limit, " are allowed");
  }
  const absl::string_view name = reader_.ReadBytes(size);
  if (HasControlCharacter(name)) {
    return Malformed("control characters in the ", what, " ", Quoted(name));
  }
  return name;
}

absl::Status GgufParser::ParseKeyValue(uint64_t number) {
  Mark();
  absl::StatusOr<absl::string_view> key = ParseName("key", kMaxGgufKeyBytes);
  if (!key.ok()) return Annotate(key.status(), absl::StrCat("metadata entry ", number));
  GgufValue value;
  RETURN_IF_ERROR(ParseValue(*key, &value));
  if (!file_->values_.emplace(*key, value).second) {
    return Malformed("key ", Quoted(*key), " appears twice");
  }
  file_->keys_.emplace_back(*key);
  return absl::OkStatus();
}

absl::Status GgufParser::ParseValue(absl::string_view key, GgufValue* value) {
  value->type_ = static_cast<GgufType>(reader_.Read<uint32_t>());
  if (value->type_ == GgufType::kArray) return ParseArray(key, value);
  uint64_t bytes = ScalarBytes(value->type_);
  if (value->type_ == GgufType::kString) {
    bytes = reader_.Read<uint64_t>();
  } else if (bytes == 0) {
    return Malformed("key ", Quoted(key), " has the unknown value type ",
                     static_cast<uint32_t>(value->type_));
  }
  value->bytes_ = reader_.ReadBytes(bytes);
  if (!reader_.ok()) {
    return Malformed("the value of key ", Quoted(key), " does not fit the file");
  }
  if (value->type_ == GgufType::kBool && static_cast<uint8_t>(value->bytes_[0]) > 1) {
    return Malformed("key ", Quoted(key), " is a bool that is neither 0 nor 1");
  }
  return absl::OkStatus();
}

absl::Status GgufParser::ParseArray(absl::string_view key, GgufValue* value) {
  value->element_type_ = static_cast<GgufType>(reader_.Read<uint32_t>());
  value->count_ = reader_.Read<uint64_t>();
  if (value->element_type_ == GgufType::kArray) {
    return Unsupported("key ", Quoted(key), " is an array of arrays");
  }
  const uint64_t left = reader_.remaining();
  const absl::string_view rest = file_->bytes_.substr(size_ - left);
  const uint64_t element_bytes = ScalarBytes(value->element_type_);
  if (value->element_type_ == GgufType::kString) {
    RETURN_IF_ERROR(ParseStringElements(key, value->count_));
  } else if (element_bytes == 0) {
    return Malformed("key ", Quoted(key), " is an array of the unknown type ",
                     static_cast<uint32_t>(value->element_type_));
  } else {
    const bool fits = reader_.ok() && value->count_ <= left / element_bytes;
    if (!fits) {
      return Malformed("key ", Quoted(key), ": ", value->count_, " elements of ", element_bytes,
                       " bytes with ", left, " bytes left");
    }
    reader_.ReadBytes(value->count_ * element_bytes);
  }
  value->bytes_ = rest.substr(0, left - reader_.remaining());
  if (value->element_type_ == GgufType::kBool &&
      std::any_of(value->bytes_.begin(), value->bytes_.end(),
                  [](char c) { return static_cast<uint8_t>(c) > 1; })) {
    return Malformed("key ", Quoted(key), " has a bool that is neither 0 nor 1");
  }
  return absl::OkStatus();
}

absl::Status GgufParser::ParseStringElements(absl::string_view key, uint64_t count) {
  const uint64_t left = reader_.remaining();
  bool fits = reader_.ok() && count <= left / sizeof(uint64_t);
  for (uint64_t i = 0; fits && i < count; ++i) {
    reader_.ReadBytes(reader_.Read<uint64_t>());
    fits = reader_.ok();
  }
  if (fits) return absl::OkStatus();
  return Malformed("key ", Quoted(key), ": ", count, " strings do not fit the ", left,
                   " bytes left");
}

absl::Status GgufParser::ParseAlignment() {
  const GgufValue* const value = file_->Find("general.alignment");
  if (value == nullptr) return absl::OkStatus();
  if (value->type() != GgufType::kUint32) {
    return Malformed("general.alignment is ", GgufTypeName(value->type()), ", not uint32");
  }
  ASSIGN_OR_RETURN(alignment_, value->AsUint());
  if (!std::has_single_bit(alignment_) || alignment_ < kMinAlignment ||
      alignment_ > kMaxGgufAlignment) {
    return Malformed("general.alignment is ", alignment_, ", not a power of two from ",
                     kMinAlignment, " to ", kMaxGgufAlignment);
  }
  return absl::OkStatus();
}

absl::Status GgufParser::ParseTensor(uint64_t number) {
  Mark();
  absl::StatusOr<absl::string_view> name = ParseName("tensor name", kMaxGgufTensorNameBytes);
  if (!name.ok()) return Annotate(name.status(), absl::StrCat("tensor ", number));
  GgufTensor tensor;
  tensor.name = std::string(*name);
  RETURN_IF_ERROR(ParseDims(&tensor));
  const uint32_t type_id = reader_.Read<uint32_t>();
  const uint64_t offset = reader_.Read<uint64_t>();
  if (!reader_.ok()) return Malformed("tensor ", tensor.name, ": its entry does not fit the file");
  absl::StatusOr<DType> type = DTypeFromId(type_id);
  if (!type.ok()) return Unsupported("tensor ", tensor.name, ": ", type.status().message());
  tensor.type = *type;
  if (tensor.dims[0] % BlockElements(tensor.type) != 0) {
    return Malformed("tensor ", tensor.name, ": rows of ", tensor.dims[0],
                     " elements are no multiple of the ", BlockElements(tensor.type),
                     " elements of a ", DTypeName(tensor.type), " block");
  }
  if (offset % alignment_ != 0) {
    return Malformed("tensor ", tensor.name, ": offset ", offset, " is not aligned to ",
                     alignment_);
  }
  if (!file_->tensor_index_.emplace(tensor.name, file_->tensors_.size()).second) {
    return Malformed("tensor ", tensor.name, " appears twice");
  }
  offsets_.push_back(offset);
  file_->tensors_.push_back(std::move(tensor));
  return absl::OkStatus();
}

absl::Status GgufParser::ParseDims(GgufTensor* tensor) {
  const uint32_t num_dims = reader_.Read<uint32_t>();
  if (!reader_.ok() || num_dims < 1 || num_dims > kMaxGgufDims) {
    return Malformed("tensor ", tensor->name, ": ", num_dims, " dimensions; 1 to ", kMaxGgufDims,
                     " are allowed");
  }
  uint64_t elements = 1;
  for (uint32_t i = 0; i < num_dims; ++i) {
    const uint64_t dim = reader_.Read<uint64_t>();
    if (!reader_.ok()) {
      return Malformed("tensor ", tensor->name, ": its entry does not fit the file");
    }
    // The largest block holds 256 elements and no element takes more than 4 bytes: up to 2^60
    // elements nothing that follows can overflow.
    if (dim == 0 || !CheckedMul(elements, dim, &elements) || elements > uint64_t{1} << 60) {
      return Malformed("tensor ", tensor->name, ": dimension ", i, " is ", dim,
                       dim == 0 ? "" : ", which makes too many elements");
    }
    tensor->dims.push_back(static_cast<int64_t>(dim));
  }
  return absl::OkStatus();
}

// Gives every tensor its bytes once the place of the data section is known.
absl::Status GgufParser::PlaceTensors() {
  Mark();
  if (num_tensors_ == 0) return absl::OkStatus();
  const uint64_t start = (position_ + alignment_ - 1) / alignment_ * alignment_;
  const uint64_t data_bytes = start <= size_ ? size_ - start : 0;
  std::vector<size_t> order;
  for (size_t i = 0; i < file_->tensors_.size(); ++i) {
    GgufTensor& tensor = file_->tensors_[i];
    const uint64_t bytes = static_cast<uint64_t>(RowBytes(tensor.type, tensor.num_elements()));
    if (offsets_[i] > data_bytes || bytes > data_bytes - offsets_[i]) {
      return Malformed("tensor ", tensor.name, ": ", bytes, " bytes at offset ", offsets_[i],
                       " reach beyond the ", data_bytes,
                       " bytes of tensor data; the file is cut "
                       "short or damaged");
    }
    tensor.data = file_->bytes_.substr(start + offsets_[i], bytes);
    order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return offsets_[a] < offsets_[b]; });
  return CheckOverlap(order);
}

absl::Status GgufParser::CheckOverlap(const std::vector<size_t>& order) const {
  for (size_t i = 1; i < order.size(); ++i) {
    const GgufTensor& before = file_->tensors_[order[i - 1]];
    if (offsets_[order[i - 1]] + before.data.size() > offsets_[order[i]]) {
      return Malformed("tensors ", before.name, " and ", file_->tensors_[order[i]].name,
                       " overlap at offset ", offsets_[order[i]]);
    }
  }
  return absl::OkStatus();
}

int64_t GgufTensor::num_elements() const {
  int64_t product = 1;
  for (const int64_t dim : dims) product *= dim;
  return product;
}

absl::StatusOr<WeightMatrix> GgufTensor::AsMatrix() const {
  for (size_t i = 2; i < dims.size(); ++i) {
    if (dims[i] != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", name, ": ", dims.size(), " dimensions, but a matrix is needed"));
    }
  }
  WeightMatrix matrix;
  matrix.data = reinterpret_cast<const uint8_t*>(data.data());
  matrix.type = type;
  matrix.rows = dims.size() > 1 ? dims[1] : 1;
  matrix.cols = dims[0];
  return matrix;
}

absl::StatusOr<std::shared_ptr<const GgufFile>> GgufFile::Open(absl::string_view path, Env& env) {
  ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> mapping, env.Map(path));
  std::shared_ptr<GgufFile> file(new GgufFile);
  RETURN_IF_ERROR(GgufParser(mapping->bytes(), path, file.get()).Parse());
  file->mapping_ = std::move(mapping);
  return file;
}

absl::StatusOr<std::shared_ptr<const GgufFile>> GgufFile::Parse(absl::string_view bytes,
                                                                absl::string_view name) {
  std::shared_ptr<GgufFile> file(new GgufFile);
  RETURN_IF_ERROR(GgufParser(bytes, name, file.get()).Parse());
  return file;
}

const GgufValue* GgufFile::Find(absl::string_view key) const {
  const auto it = values_.find(key);
  return it == values_.end() ? nullptr : &it->second;
}

const GgufTensor* GgufFile::FindTensor(absl::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

absl::StatusOr<const GgufValue*> GgufFile::Require(absl::string_view key) const {
  const GgufValue* const value = Find(key);
  if (value == nullptr) return absl::NotFoundError(absl::StrCat(path_, ": no key ", key));
  return value;
}

// The converted value, or its error with file and key before it.
template <typename T>
absl::StatusOr<T> GgufFile::Named(absl::string_view key, absl::StatusOr<T> converted) const {
  if (converted.ok()) return converted;
  return absl::Status(converted.status().code(),
                      absl::StrCat(path_, ": key ", key, " ", converted.status().message()));
}

absl::StatusOr<uint64_t> GgufFile::GetUint(absl::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, Require(key));
  return Named(key, value->AsUint());
}

absl::StatusOr<double> GgufFile::GetFloat(absl::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, Require(key));
  return Named(key, value->AsFloat());
}

absl::StatusOr<absl::string_view> GgufFile::GetString(absl::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, Require(key));
  return Named(key, value->AsString());
}

absl::StatusOr<uint64_t> GgufFile::GetUintOr(absl::string_view key, uint64_t fallback) const {
  const GgufValue* const value = Find(key);
  return value == nullptr ? fallback : Named(key, value->AsUint());
}

absl::StatusOr<double> GgufFile::GetFloatOr(absl::string_view key, double fallback) const {
  const GgufValue* const value = Find(key);
  return value == nullptr ? fallback : Named(key, value->AsFloat());
}

absl::StatusOr<bool> GgufFile::GetBoolOr(absl::string_view key, bool fallback) const {
  const GgufValue* const value = Find(key);
  return value == nullptr ? fallback : Named(key, value->AsBool());
}

absl::StatusOr<absl::string_view> GgufFile::GetStringOr(absl::string_view key,
                                                        absl::string_view fallback) const {
  const GgufValue* const value = Find(key);
  return value == nullptr ? fallback : Named(key, value->AsString());
}

}  // namespace fedge
