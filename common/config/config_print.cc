// Messages as YAML.
#include <charconv>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/config/config_file.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"

namespace fedge {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// The shortest text that reads back as this number.
template <typename T>
std::string Shortest(T value) {
  char text[64];
  const auto result = std::to_chars(text, text + sizeof(text), value);
  return std::string(text, result.ptr);
}

// In double quotes, as both YAML and JSON have them.
std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      absl::StrAppend(&out, "\\", std::string(1, c));
    } else if (byte < 0x20 || byte == 0x7F) {
      absl::StrAppend(&out, "\\u", absl::Hex(byte, absl::kZeroPad4));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

// The value of a field; of its `index`-th one if it is repeated.
std::string ScalarText(const Message& message, const FieldDescriptor& field, int index) {
  const Reflection& reflection = *message.GetReflection();
  const bool repeated = field.is_repeated();
#define FEDGE_CONFIG_VALUE(Method)                                   \
  (repeated ? reflection.GetRepeated##Method(message, &field, index) \
            : reflection.Get##Method(message, &field))
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::StrCat(FEDGE_CONFIG_VALUE(Int32));
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::StrCat(FEDGE_CONFIG_VALUE(Int64));
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(FEDGE_CONFIG_VALUE(UInt32));
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrCat(FEDGE_CONFIG_VALUE(UInt64));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return Shortest(FEDGE_CONFIG_VALUE(Double));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return Shortest(FEDGE_CONFIG_VALUE(Float));
    case FieldDescriptor::CPPTYPE_BOOL:
      return FEDGE_CONFIG_VALUE(Bool) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return FEDGE_CONFIG_VALUE(Enum)->name();
    case FieldDescriptor::CPPTYPE_STRING:
      return Quoted(FEDGE_CONFIG_VALUE(String));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      break;
  }
#undef FEDGE_CONFIG_VALUE
  FEDGE_CHECK(false, field.full_name(), ": is no scalar");
}

void Print(const Message& message, size_t indent, std::string& out) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  const std::string space(indent, ' ');
  for (const FieldDescriptor* const field : fields) {
    const bool is_message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    absl::StrAppend(&out, space, field->name(), ":");
    if (!field->is_repeated()) {
      if (is_message) {
        out += "\n";
        Print(reflection.GetMessage(message, field), indent + 2, out);
      } else {
        absl::StrAppend(&out, " ", ScalarText(message, *field, 0), "\n");
      }
      continue;
    }
    out += "\n";
    for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
      absl::StrAppend(&out, space, "  -");
      if (is_message) {
        out += "\n";
        Print(reflection.GetRepeatedMessage(message, field, i), indent + 4, out);
      } else {
        absl::StrAppend(&out, " ", ScalarText(message, *field, i), "\n");
      }
    }
  }
}

}  // namespace

std::string PrintConfig(const Message& message) {
  std::string out;
  Print(message, 0, out);
  return out;
}

}  // namespace fedge
