// A JSON object of a file from outside, read with errors that name file and key.
#ifndef FEDGE_TOOLS_PREPARE_JSON_OBJECT_H_
#define FEDGE_TOOLS_PREPARE_JSON_OBJECT_H_

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/env.h"

namespace fedge {

inline constexpr uint64_t kMaxJsonFileBytes = uint64_t{1}
                                              << 28;  // gemma's tokenizer.json has 33 MB

// A view that keeps the parsed file alive. A key whose value is null counts as absent; an absent
// object is empty.
class JsonObject {
 public:
  JsonObject() = default;  // empty
  // NotFound, or InvalidArgument: too large, not JSON (with the byte), not an object.
  static absl::StatusOr<JsonObject> Read(absl::string_view path, Env& env);
  // The same, but an absent file is an empty object.
  static absl::StatusOr<JsonObject> ReadIfThere(absl::string_view path, Env& env);

  bool Has(absl::string_view key) const { return Find(key) != nullptr; }
  const nlohmann::json* Find(absl::string_view key) const;  // null when absent

  // The value of a key, or its default. InvalidArgument: no such key (without a default), or
  // another type.
  absl::StatusOr<int64_t> Int(absl::string_view key) const;
  absl::StatusOr<int64_t> IntOr(absl::string_view key, int64_t fallback) const;
  absl::StatusOr<double> NumberOr(absl::string_view key, double fallback) const;
  absl::StatusOr<std::string> StringOr(absl::string_view key, absl::string_view fallback) const;
  absl::StatusOr<bool> BoolOr(absl::string_view key, bool fallback) const;
  absl::StatusOr<std::vector<float>> Numbers(absl::string_view key) const;  // empty when absent
  absl::StatusOr<std::vector<std::string>> Strings(absl::string_view key) const;
  absl::StatusOr<JsonObject> Object(absl::string_view key) const;

  // "config.json: rope_scaling: <key> ...": for errors about a value.
  absl::Status Error(absl::string_view key, absl::string_view reason) const;
  const std::string& place() const { return place_; }

 private:
  JsonObject(std::shared_ptr<const nlohmann::json> file, const nlohmann::json* object,
             std::string place)
      : file_(std::move(file)), object_(object), place_(std::move(place)) {}

  std::shared_ptr<const nlohmann::json> file_;
  const nlohmann::json* object_ = nullptr;
  std::string place_;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_JSON_OBJECT_H_
