#include "tools/fedge/proto_json.h"

#include <algorithm>
#include <charconv>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"

namespace fedge {
namespace {

using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using Json = nlohmann::ordered_json;

constexpr absl::string_view kTimeSuffix = "_us";

bool IsTime(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_INT64 &&
         absl::EndsWith(field.name(), kTimeSuffix);
}

Json TimeJson(int64_t unix_us) {
  if (unix_us == 0) return nullptr;
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::FromUnixMicros(unix_us),
                          absl::UTCTimeZone());
}

// The shortest decimal that is this float, not the digits of the double it would become.
Json ShortestJson(float value) {
  char text[32];
  const auto result = std::to_chars(text, text + sizeof(text), value);
  return Json::parse(text, result.ptr, nullptr, /*allow_exceptions=*/false);
}

// The value of a field; of its `index`-th one if it is repeated.
Json ValueJson(const Message& message, const FieldDescriptor& field, int index) {
  const Reflection& reflection = *message.GetReflection();
  const bool repeated = field.is_repeated();
#define FEDGE_JSON_VALUE(Method)                                     \
  (repeated ? reflection.GetRepeated##Method(message, &field, index) \
            : reflection.Get##Method(message, &field))
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return FEDGE_JSON_VALUE(Int32);
    case FieldDescriptor::CPPTYPE_INT64: {
      const int64_t value = FEDGE_JSON_VALUE(Int64);
      return IsTime(field) ? TimeJson(value) : Json(value);
    }
    case FieldDescriptor::CPPTYPE_UINT32:
      return FEDGE_JSON_VALUE(UInt32);
    case FieldDescriptor::CPPTYPE_UINT64:
      return FEDGE_JSON_VALUE(UInt64);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return FEDGE_JSON_VALUE(Double);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return ShortestJson(FEDGE_JSON_VALUE(Float));
    case FieldDescriptor::CPPTYPE_BOOL:
      return FEDGE_JSON_VALUE(Bool);
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumText(*FEDGE_JSON_VALUE(Enum));
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string value = FEDGE_JSON_VALUE(String);
      const bool bytes = field.type() == FieldDescriptor::TYPE_BYTES;
      return bytes ? absl::BytesToHexString(value) : value;
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      break;
  }
#undef FEDGE_JSON_VALUE
  return ProtoJson(repeated ? reflection.GetRepeatedMessage(message, &field, index)
                            : reflection.GetMessage(message, &field));
}

}  // namespace

std::string EnumText(const google::protobuf::EnumValueDescriptor& value) {
  const EnumDescriptor& type = *value.type();
  std::string common = type.value(0)->name();
  for (int i = 1; i < type.value_count(); ++i) {
    const std::string& name = type.value(i)->name();
    const auto end = std::mismatch(common.begin(), common.end(), name.begin(), name.end()).first;
    common.erase(end, common.end());
  }
  const size_t underscore = common.rfind('_');
  const size_t prefix = underscore == std::string::npos ? 0 : underscore + 1;
  return absl::AsciiStrToLower(value.name().substr(prefix));
}

std::string TimeText(int64_t unix_us) {
  if (unix_us == 0) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixMicros(unix_us),
                          absl::LocalTimeZone());
}

Json ProtoJson(const Message& message) {
  const google::protobuf::Descriptor& type = *message.GetDescriptor();
  const Reflection& reflection = *message.GetReflection();
  Json json = Json::object();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    std::string name = field.name();
    if (IsTime(field)) name.resize(name.size() - kTimeSuffix.size());
    if (field.is_repeated()) {
      Json& list = json[name] = Json::array();
      for (int j = 0; j < reflection.FieldSize(message, &field); ++j) {
        list.push_back(ValueJson(message, field, j));
      }
    } else if (!field.has_presence() || reflection.HasField(message, &field)) {
      json[name] = ValueJson(message, field, 0);
    }
  }
  return json;
}

}  // namespace fedge
