#include "common/config/config_file.h"

#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"
#include "fedge/v1/config.pb.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "yaml-cpp/yaml.h"

namespace fedge {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Walks YAML and message side by side. Everything that yaml-cpp throws ends in ParseConfig.
class Reader {
 public:
  Reader(absl::string_view name, ConfigPlaces* places) : name_(name), places_(places) {}

  absl::Status ReadMessage(const YAML::Node& node, absl::string_view path, Message& message) const {
    if (!node.IsMap()) {
      return Error(node, path, absl::StrCat("must be a mapping of fields, not ", Kind(node)));
    }
    std::set<std::string> seen;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar())
        return Error(entry.first, path, "field names must be plain text");
      const std::string& key = entry.first.Scalar();
      const FieldDescriptor* const field = message.GetDescriptor()->FindFieldByName(key);
      if (field == nullptr) return UnknownField(entry.first, key, path, *message.GetDescriptor());
      const std::string field_path = path.empty() ? key : absl::StrCat(path, ".", key);
      if (!seen.insert(key).second) return Error(entry.first, field_path, "given twice");
      if (entry.second.IsNull()) continue;
      AddPlace(field_path, entry.first);
      RETURN_IF_ERROR(ReadField(entry.second, field_path, *field, message));
    }
    return absl::OkStatus();
  }

  absl::Status ErrorAt(const YAML::Mark& mark, absl::string_view text) const {
    if (mark.is_null()) return absl::InvalidArgumentError(absl::StrCat(name_, ": ", text));
    return absl::InvalidArgumentError(
        absl::StrCat(name_, ":", mark.line + 1, ":", mark.column + 1, ": ", text));
  }

 private:
  static absl::string_view Kind(const YAML::Node& node) {
    if (node.IsSequence()) return "a list";
    if (node.IsMap()) return "a mapping";
    if (node.IsScalar()) return "a single value";
    return "nothing";
  }

  void AddPlace(const std::string& path, const YAML::Node& node) const {
    const YAML::Mark mark = node.Mark();
    if (places_ != nullptr && !mark.is_null()) places_->Add(path, mark.line + 1, mark.column + 1);
  }

  absl::Status Error(const YAML::Node& node, absl::string_view path, absl::string_view text) const {
    return ErrorAt(node.Mark(), path.empty() ? std::string(text) : absl::StrCat(path, ": ", text));
  }

  absl::Status UnknownField(const YAML::Node& node, absl::string_view key, absl::string_view path,
                            const Descriptor& descriptor) const {
    std::vector<std::string> known;
    for (int i = 0; i < descriptor.field_count(); ++i) known.push_back(descriptor.field(i)->name());
    return Error(node, path,
                 absl::StrCat("unknown field '", key, "'; known: ", absl::StrJoin(known, ", ")));
  }

  absl::Status ReadField(const YAML::Node& node, const std::string& path,
                         const FieldDescriptor& field, Message& message) const {
    const Reflection& reflection = *message.GetReflection();
    const bool is_message = field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (!field.is_repeated()) {
      if (is_message) return ReadMessage(node, path, *reflection.MutableMessage(&message, &field));
      return ReadScalar(node, path, field, message);
    }
    if (!node.IsSequence())
      return Error(node, path, absl::StrCat("must be a list, not ", Kind(node)));
    reflection.ClearField(&message, &field);
    for (size_t i = 0; i < node.size(); ++i) {
      const std::string item = absl::StrCat(path, "[", i, "]");
      AddPlace(item, node[i]);
      RETURN_IF_ERROR(is_message
                          ? ReadMessage(node[i], item, *reflection.AddMessage(&message, &field))
                          : ReadScalar(node[i], item, field, message));
    }
    return absl::OkStatus();
  }

  template <typename T>
  static absl::string_view IntegerName() {
    return std::numeric_limits<T>::is_signed ? "a whole number" : "a whole number of at least 0";
  }

  template <typename T>
  absl::Status ReadInteger(const YAML::Node& node, absl::string_view path, T& value) const {
    if (absl::SimpleAtoi(node.Scalar(), &value)) return absl::OkStatus();
    return Error(node, path,
                 absl::StrCat("'", node.Scalar(), "' is not ", IntegerName<T>(), " up to ",
                              std::numeric_limits<T>::max()));
  }

  absl::Status ReadNumber(const YAML::Node& node, absl::string_view path, double limit,
                          double& value) const {
    if (absl::SimpleAtod(node.Scalar(), &value) && std::abs(value) <= limit) {
      return absl::OkStatus();
    }
    return Error(node, path, absl::StrCat("'", node.Scalar(), "' is not a finite number"));
  }

  absl::Status ReadScalar(const YAML::Node& node, const std::string& path,
                          const FieldDescriptor& field, Message& message) const {
    if (!node.IsScalar()) {
      return Error(node, path, absl::StrCat("must be a single value, not ", Kind(node)));
    }
    const Reflection& reflection = *message.GetReflection();
    const bool repeated = field.is_repeated();
// One case a C++ type: read into `value`, then Set or Add it.
#define FEDGE_CONFIG_CASE(CPPTYPE, Method, type, read) \
  case FieldDescriptor::CPPTYPE_##CPPTYPE: {           \
    type value{};                                      \
    RETURN_IF_ERROR(read);                             \
    if (repeated) {                                    \
      reflection.Add##Method(&message, &field, value); \
    } else {                                           \
      reflection.Set##Method(&message, &field, value); \
    }                                                  \
    return absl::OkStatus();                           \
  }
    switch (field.cpp_type()) {
      FEDGE_CONFIG_CASE(INT32, Int32, int32_t, ReadInteger(node, path, value))
      FEDGE_CONFIG_CASE(INT64, Int64, int64_t, ReadInteger(node, path, value))
      FEDGE_CONFIG_CASE(UINT32, UInt32, uint32_t, ReadInteger(node, path, value))
      FEDGE_CONFIG_CASE(UINT64, UInt64, uint64_t, ReadInteger(node, path, value))
      FEDGE_CONFIG_CASE(DOUBLE, Double, double,
                        ReadNumber(node, path, std::numeric_limits<double>::max(), value))
      FEDGE_CONFIG_CASE(BOOL, Bool, bool, ReadBool(node, path, value))
      FEDGE_CONFIG_CASE(STRING, String, std::string, ReadString(node, path, value))
      case FieldDescriptor::CPPTYPE_FLOAT: {
        double value = 0;
        RETURN_IF_ERROR(ReadNumber(node, path, std::numeric_limits<float>::max(), value));
        if (repeated) {
          reflection.AddFloat(&message, &field, static_cast<float>(value));
        } else {
          reflection.SetFloat(&message, &field, static_cast<float>(value));
        }
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_ENUM:
        return ReadEnum(node, path, field, message);
      default:
        break;
    }
#undef FEDGE_CONFIG_CASE
    FEDGE_CHECK(false, field.full_name(), ": no configuration field has this type");
  }

  absl::Status ReadBool(const YAML::Node& node, absl::string_view path, bool& value) const {
    const std::string& text = node.Scalar();
    value = text == "true";
    if (value || text == "false") return absl::OkStatus();
    return Error(node, path, absl::StrCat("'", text, "' is not true or false"));
  }

  absl::Status ReadString(const YAML::Node& node, absl::string_view path,
                          std::string& value) const {
    value = node.Scalar();
    for (const char c : value) {
      if (c == '\0') return Error(node, path, "must not hold a zero byte");
    }
    return absl::OkStatus();
  }

  absl::Status ReadEnum(const YAML::Node& node, absl::string_view path,
                        const FieldDescriptor& field, Message& message) const {
    const auto* const value = field.enum_type()->FindValueByName(node.Scalar());
    if (value == nullptr) {
      std::vector<std::string> known;
      for (int i = 0; i < field.enum_type()->value_count(); ++i) {
        known.push_back(field.enum_type()->value(i)->name());
      }
      return Error(
          node, path,
          absl::StrCat("'", node.Scalar(), "' is not one of ", absl::StrJoin(known, ", ")));
    }
    const Reflection& reflection = *message.GetReflection();
    if (field.is_repeated()) {
      reflection.AddEnum(&message, &field, value);
    } else {
      reflection.SetEnum(&message, &field, value);
    }
    return absl::OkStatus();
  }

  absl::string_view name_;
  ConfigPlaces* places_;
};

absl::string_view TypeName(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return "text";
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true|false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return "name";
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "number";
    default:
      return "whole number";
  }
}

void Describe(const Descriptor& descriptor, int indent, std::string& out) {
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor& field = *descriptor.field(i);
    const bool is_message = field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    std::string line(static_cast<size_t>(indent), ' ');
    absl::StrAppend(&line, field.name(), ":");
    if (!is_message) {
      absl::StrAppend(&line, field.is_repeated() ? " [" : " ", TypeName(field),
                      field.is_repeated() ? ", ...]" : "");
    }
    if (line.size() < 38) line.resize(38, ' ');
    absl::StrAppend(&out, line, "  # ", field.options().GetExtension(v1::doc), "\n");
    if (is_message) Describe(*field.message_type(), indent + 2, out);
  }
}

}  // namespace

absl::Status ParseConfig(absl::string_view yaml, absl::string_view name, Message& message,
                         ConfigPlaces* places) {
  if (places != nullptr) places->Start(name, *message.GetDescriptor());
  const Reader reader(name, places);
  try {
    const YAML::Node root = YAML::Load(std::string(yaml));
    if (!root.IsDefined() || root.IsNull()) return absl::OkStatus();
    return reader.ReadMessage(root, "", message);
  } catch (const YAML::Exception& error) {
    return reader.ErrorAt(error.mark, error.msg);
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", error.what()));
  }
}

absl::Status LoadConfigFile(absl::string_view path, Env& env, Message& message,
                            ConfigPlaces* places) {
  ASSIGN_OR_RETURN(const std::string text, env.ReadFile(path, kMaxConfigBytes));
  return ParseConfig(text, path, message, places);
}

std::string DescribeConfig(const Descriptor& descriptor) {
  std::string out;
  Describe(descriptor, 0, out);
  return out;
}

}  // namespace fedge
