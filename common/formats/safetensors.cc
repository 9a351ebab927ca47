#include "common/formats/safetensors.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "common/base/byte_io.h"
#include "common/base/status.h"
#include "common/tensor/quantize.h"
#include "nlohmann/json.hpp"

namespace fedge {
namespace {

constexpr absl::string_view kMetadataKey = "__metadata__";
constexpr size_t kHeaderAlignment = 8;
constexpr uint64_t kMaxElements = uint64_t{1} << 60;  // their bytes cannot overflow

// Foreign bytes in a message: printable and short.
std::string Quoted(absl::string_view text) {
  constexpr size_t kMaxShown = 80;
  return absl::StrCat("'", absl::CHexEscape(text.substr(0, kMaxShown)),
                      text.size() > kMaxShown ? "...'" : "'");
}

absl::StatusOr<DType> DTypeOf(absl::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "F16") return DType::kF16;
  if (name == "BF16") return DType::kBF16;
  return absl::UnimplementedError(
      absl::StrCat("dtype ", Quoted(name), " is not supported; convert it to F32, F16 or BF16"));
}

// One tensor as the header claims it.
struct Claim {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  std::vector<uint64_t> offsets;
};

// Receives the header's JSON as events, so that nothing is built that the format does not have:
// {"__metadata__": {string: string}, name: {"dtype": string, "shape": [..], "data_offsets": [..]}}
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<Claim>& claims() { return claims_; }
  std::map<std::string, std::string>& metadata() { return metadata_; }
  const std::string& error() const { return error_; }

  bool null() override { return Fail("null where there is none in the format"); }
  bool boolean(bool) override { return Fail("a bool where there is none in the format"); }
  bool number_integer(number_integer_t) override { return Fail("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return Fail("a fraction"); }
  bool binary(binary_t&) override { return Fail("binary data"); }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& value) override;
  bool start_object(size_t) override;
  bool end_object() override;
  bool key(string_t& name) override;
  bool start_array(size_t) override;
  bool end_array() override;
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("no valid JSON at its byte ", position));
  }

 private:
  enum class Place { kStart, kTop, kMetadata, kTensor, kArray, kEnd };

  bool Fail(absl::string_view message) {
    error_ = place_ == Place::kTensor || place_ == Place::kArray
                 ? absl::StrCat("tensor ", Quoted(claims_.back().name), ": ", message)
                 : std::string(message);
    return false;
  }
  bool TopKey(const std::string& name);

  Place place_ = Place::kStart;
  std::string key_;
  std::set<std::string> fields_;  // seen in the current tensor
  std::set<std::string> names_;
  std::vector<Claim> claims_;
  std::map<std::string, std::string> metadata_;
  bool has_metadata_ = false;
  std::string error_;
};

bool HeaderHandler::number_unsigned(number_unsigned_t value) {
  if (place_ != Place::kArray) return Fail("a number outside of shape and data_offsets");
  std::vector<uint64_t>& list = key_ == "shape" ? claims_.back().shape : claims_.back().offsets;
  if (list.size() >= kMaxSafetensorsDims) {
    return Fail(absl::StrCat(key_, " has more than ", kMaxSafetensorsDims, " numbers"));
  }
  list.push_back(value);
  return true;
}

bool HeaderHandler::string(string_t& value) {
  if (place_ == Place::kMetadata) {
    if (metadata_.size() >= kMaxSafetensorsEntries) return Fail("too many metadata entries");
    if (!metadata_.emplace(key_, std::move(value)).second) {
      return Fail(absl::StrCat("metadata key ", Quoted(key_), " appears twice"));
    }
    return true;
  }
  if (place_ != Place::kTensor || key_ != "dtype") return Fail("a string where none belongs");
  claims_.back().dtype = std::move(value);
  return true;
}

bool HeaderHandler::start_object(size_t) {
  if (place_ == Place::kStart) {
    place_ = Place::kTop;
    return true;
  }
  if (place_ != Place::kTop) return Fail("an object where none belongs");
  if (key_ == kMetadataKey) {
    place_ = Place::kMetadata;
    return true;
  }
  claims_.push_back({key_, {}, {}, {}});
  fields_.clear();
  place_ = Place::kTensor;
  return true;
}

bool HeaderHandler::end_object() {
  if (place_ == Place::kTensor && fields_.size() != 3) {
    return Fail("dtype, shape or data_offsets is missing");
  }
  place_ = place_ == Place::kTop ? Place::kEnd : Place::kTop;
  return true;
}

bool HeaderHandler::TopKey(const std::string& name) {
  if (name == kMetadataKey) {
    if (std::exchange(has_metadata_, true)) return Fail("__metadata__ appears twice");
    return true;
  }
  const bool has_control = std::any_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_iscntrl(static_cast<unsigned char>(c));
  });
  if (name.empty() || name.size() > kMaxSafetensorsNameBytes || has_control) {
    return Fail(absl::StrCat("the tensor name ", Quoted(name), " is empty, longer than ",
                             kMaxSafetensorsNameBytes, " bytes or has control characters"));
  }
  if (claims_.size() >= kMaxSafetensorsEntries) {
    return Fail(absl::StrCat("more than ", kMaxSafetensorsEntries, " tensors"));
  }
  if (!names_.insert(name).second) {
    return Fail(absl::StrCat("tensor ", Quoted(name), " appears twice"));
  }
  return true;
}

bool HeaderHandler::key(string_t& name) {
  if (place_ == Place::kTop && !TopKey(name)) return false;
  if (place_ == Place::kTensor) {
    if (name != "dtype" && name != "shape" && name != "data_offsets") {
      return Fail(absl::StrCat("unknown field ", Quoted(name)));
    }
    if (!fields_.insert(name).second) return Fail(absl::StrCat(name, " appears twice"));
  }
  key_ = std::move(name);
  return true;
}

bool HeaderHandler::start_array(size_t) {
  if (place_ != Place::kTensor || key_ == "dtype") return Fail("an array where none belongs");
  place_ = Place::kArray;
  return true;
}

bool HeaderHandler::end_array() {
  place_ = Place::kTensor;
  return true;
}

}  // namespace

class SafetensorsParser {
 public:
  SafetensorsParser(absl::string_view bytes, absl::string_view name, SafetensorsFile* file)
      : bytes_(bytes), file_(file) {
    file_->path_ = std::string(name);
  }

  absl::Status Parse() {
    ASSIGN_OR_RETURN(const absl::string_view header, Header());
    HeaderHandler handler;
    if (!nlohmann::json::sax_parse(header.begin(), header.end(), &handler)) {
      return Malformed("header: ", handler.error());
    }
    file_->metadata_ = std::move(handler.metadata());
    std::vector<Claim>& claims = handler.claims();
    for (const Claim& claim : claims) {
      if (claim.offsets.size() != 2) {
        return Malformed("tensor ", claim.name, ": data_offsets are not two numbers");
      }
    }
    // In the order of the data; empty tensors before the one that starts at the same byte.
    std::stable_sort(claims.begin(), claims.end(),
                     [](const Claim& a, const Claim& b) { return a.offsets < b.offsets; });
    uint64_t end = 0;
    for (const Claim& claim : claims) RETURN_IF_ERROR(AddTensor(claim, &end));
    if (end != data_.size()) {
      return Malformed("the tensors end at byte ", end, " of ", data_.size(), " bytes of data");
    }
    return absl::OkStatus();
  }

 private:
  template <typename... Pieces>
  absl::Status Malformed(const Pieces&... pieces) const {
    return absl::InvalidArgumentError(absl::StrCat(file_->path_, ": ", pieces...));
  }

  absl::StatusOr<absl::string_view> Header();
  absl::Status AddTensor(const Claim& claim, uint64_t* end);

  absl::string_view bytes_;
  absl::string_view data_;  // what follows the header
  SafetensorsFile* file_;
};

absl::StatusOr<absl::string_view> SafetensorsParser::Header() {
  ByteReader reader(bytes_);
  const uint64_t size = reader.Read<uint64_t>();
  if (!reader.ok()) return Malformed(bytes_.size(), " bytes are too few for a safetensors file");
  if (size > kMaxSafetensorsHeaderBytes || size > reader.remaining()) {
    return Malformed("a header of ", size, " bytes, with ", reader.remaining(),
                     " bytes left and a limit of ", kMaxSafetensorsHeaderBytes);
  }
  const absl::string_view header = reader.ReadBytes(size);
  if (header.empty() || header.front() != '{') {
    return Malformed("not a safetensors file: the header does not start with '{'");
  }
  // The JSON library takes a zero byte for the end of its input.
  if (header.find('\0') != absl::string_view::npos) return Malformed("a zero byte in the header");
  data_ = bytes_.substr(reader.position());
  return header;
}

// `end`: where the tensor before ended.
absl::Status SafetensorsParser::AddTensor(const Claim& claim, uint64_t* end) {
  SafetensorsTensor tensor;
  tensor.name = claim.name;
  absl::StatusOr<DType> type = DTypeOf(claim.dtype);
  if (!type.ok()) {
    return absl::Status(type.status().code(), absl::StrCat(file_->path_, ": tensor ", claim.name,
                                                           ": ", type.status().message()));
  }
  tensor.type = *type;
  uint64_t elements = 1;
  for (const uint64_t dim : claim.shape) {
    if (!CheckedMul(elements, dim, &elements) || dim > kMaxElements || elements > kMaxElements) {
      return Malformed("tensor ", claim.name, ": its shape has too many elements");
    }
    tensor.shape.push_back(static_cast<int64_t>(dim));
  }
  const uint64_t first = claim.offsets[0], last = claim.offsets[1];
  if (first != *end) {
    return Malformed(
        "tensor ", claim.name, " starts at byte ", first,
        first < *end ? ", inside the tensor before, which ends at " : " and leaves a hole after ",
        *end);
  }
  if (last < first || last > data_.size()) {
    return Malformed("tensor ", claim.name, ": bytes ", first, " to ", last, " of ", data_.size(),
                     " bytes of data");
  }
  const uint64_t bytes = elements * static_cast<uint64_t>(BlockBytes(tensor.type));
  if (last - first != bytes) {
    return Malformed("tensor ", claim.name, ": ", last - first, " bytes, but its shape needs ",
                     bytes);
  }
  tensor.data = data_.substr(first, bytes);
  *end = last;
  file_->index_.emplace(tensor.name, file_->tensors_.size());
  file_->tensors_.push_back(std::move(tensor));
  return absl::OkStatus();
}

int64_t SafetensorsTensor::num_elements() const {
  int64_t product = 1;
  for (const int64_t dim : shape) product *= dim;
  return product;
}

std::vector<float> SafetensorsTensor::ToFloats() const {
  std::vector<float> values(static_cast<size_t>(num_elements()));
  Dequantize(type, reinterpret_cast<const uint8_t*>(data.data()), num_elements(), values.data());
  return values;
}

absl::StatusOr<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::Open(absl::string_view path,
                                                                             Env& env) {
  ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> mapping, env.Map(path));
  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile);
  RETURN_IF_ERROR(SafetensorsParser(mapping->bytes(), path, file.get()).Parse());
  file->mapping_ = std::move(mapping);
  return file;
}

absl::StatusOr<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::Parse(
    absl::string_view bytes, absl::string_view name) {
  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile);
  RETURN_IF_ERROR(SafetensorsParser(bytes, name, file.get()).Parse());
  return file;
}

const SafetensorsTensor* SafetensorsFile::Find(absl::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

namespace {

std::string JsonString(absl::string_view text) {
  return nlohmann::json(std::string(text))
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string JsonNumbers(absl::Span<const int64_t> numbers) {
  std::string out = "[";
  for (const int64_t number : numbers) absl::StrAppend(&out, out.size() > 1 ? "," : "", number);
  return out + "]";
}

}  // namespace

std::string SerializeSafetensors(absl::Span<const SafetensorsEntry> entries,
                                 const std::map<std::string, std::string>& metadata) {
  std::string header = "{";
  if (!metadata.empty()) {
    absl::StrAppend(&header, JsonString(kMetadataKey), ":{");
    for (const auto& [key, value] : metadata) {
      absl::StrAppend(&header, header.back() == '{' ? "" : ",", JsonString(key), ":",
                      JsonString(value));
    }
    header += "}";
  }
  int64_t offset = 0;
  std::set<std::string> names;
  for (const SafetensorsEntry& entry : entries) {
    int64_t elements = 1;
    for (const int64_t dim : entry.shape) elements *= dim;
    FEDGE_CHECK(static_cast<int64_t>(entry.values.size()) == elements, entry.name);
    FEDGE_CHECK(names.insert(entry.name).second, "tensor ", entry.name, " is added twice");
    const int64_t end = offset + elements * static_cast<int64_t>(sizeof(float));
    absl::StrAppend(&header, header.size() > 1 ? "," : "", JsonString(entry.name),
                    ":{\"dtype\":\"F32\",\"shape\":", JsonNumbers(entry.shape),
                    ",\"data_offsets\":", JsonNumbers({offset, end}), "}");
    offset = end;
  }
  header += "}";
  header.resize((header.size() + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment, ' ');
  ByteWriter out;
  out.Write(static_cast<uint64_t>(header.size()));
  out.WriteBytes(header);
  out.bytes().reserve(out.size() + static_cast<size_t>(offset));
  for (const SafetensorsEntry& entry : entries) {
    out.WriteBytes(absl::string_view(reinterpret_cast<const char*>(entry.values.data()),
                                     entry.values.size() * sizeof(float)));
  }
  return std::move(out).Take();
}

}  // namespace fedge
