#include "tools/prepare/json_object.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {

using Json = nlohmann::json;

absl::StatusOr<JsonObject> JsonObject::Read(absl::string_view path, Env& env) {
  ASSIGN_OR_RETURN(const std::string text, env.ReadFile(path, kMaxJsonFileBytes));
  auto file = std::make_shared<Json>();
  try {
    *file = Json::parse(text);
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.what()));
  }
  if (!file->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is ", file->type_name(), ", not a JSON object"));
  }
  const Json* const object = file.get();
  return JsonObject(std::move(file), object, std::string(path));
}

absl::StatusOr<JsonObject> JsonObject::ReadIfThere(absl::string_view path, Env& env) {
  if (env.Exists(path)) return Read(path, env);
  JsonObject empty;
  empty.place_ = std::string(path);
  return empty;
}

const Json* JsonObject::Find(absl::string_view key) const {
  if (object_ == nullptr) return nullptr;
  const auto found = object_->find(std::string(key));
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

absl::Status JsonObject::Error(absl::string_view key, absl::string_view reason) const {
  return absl::InvalidArgumentError(absl::StrCat(place_, ": ", key, " ", reason));
}

absl::StatusOr<int64_t> JsonObject::Int(absl::string_view key) const {
  const Json* const value = Find(key);
  if (value == nullptr) return Error(key, "is missing");
  if (value->is_number_unsigned() && value->get<uint64_t>() > uint64_t{INT64_MAX}) {
    return Error(key, "is out of range");
  }
  if (!value->is_number_integer()) {
    return Error(key, absl::StrCat("is ", value->type_name(), ", not an integer"));
  }
  return value->get<int64_t>();
}

absl::StatusOr<int64_t> JsonObject::IntOr(absl::string_view key, int64_t fallback) const {
  return Has(key) ? Int(key) : absl::StatusOr<int64_t>(fallback);
}

absl::StatusOr<double> JsonObject::NumberOr(absl::string_view key, double fallback) const {
  const Json* const value = Find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    return Error(key, absl::StrCat("is ", value->type_name(), ", not a number"));
  }
  return value->get<double>();
}

absl::StatusOr<std::string> JsonObject::StringOr(absl::string_view key,
                                                 absl::string_view fallback) const {
  const Json* const value = Find(key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) {
    return Error(key, absl::StrCat("is ", value->type_name(), ", not a string"));
  }
  return value->get<std::string>();
}

absl::StatusOr<bool> JsonObject::BoolOr(absl::string_view key, bool fallback) const {
  const Json* const value = Find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    return Error(key, absl::StrCat("is ", value->type_name(), ", not true or false"));
  }
  return value->get<bool>();
}

absl::StatusOr<std::vector<float>> JsonObject::Numbers(absl::string_view key) const {
  std::vector<float> numbers;
  const Json* const value = Find(key);
  if (value == nullptr) return numbers;
  if (!value->is_array()) return Error(key, "is not a list");
  for (const Json& item : *value) {
    if (!item.is_number()) return Error(key, "is not a list of numbers");
    numbers.push_back(item.get<float>());
  }
  return numbers;
}

absl::StatusOr<std::vector<std::string>> JsonObject::Strings(absl::string_view key) const {
  std::vector<std::string> strings;
  const Json* const value = Find(key);
  if (value == nullptr) return strings;
  if (!value->is_array()) return Error(key, "is not a list");
  for (const Json& item : *value) {
    if (!item.is_string()) return Error(key, "is not a list of strings");
    strings.push_back(item.get<std::string>());
  }
  return strings;
}

absl::StatusOr<JsonObject> JsonObject::Object(absl::string_view key) const {
  const std::string place = absl::StrCat(place_, ": ", key);
  const Json* const value = Find(key);
  if (value != nullptr && !value->is_object()) {
    return Error(key, absl::StrCat("is ", value->type_name(), ", not an object"));
  }
  return JsonObject(file_, value, place);
}

}  // namespace fedge
