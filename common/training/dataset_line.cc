#include "common/training/dataset_line.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxNameBytes = 256;

// Reads without building anything, to learn where the JSON breaks: the parser that builds a value
// tells that only by throwing.
class BreakFinder final : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return true; }
  bool key(string_t&) override { return true; }
  bool end_object() override { return true; }
  bool start_array(std::size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(std::size_t position, const std::string& /*last_token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    column_ = position;
    return false;
  }

  size_t column() const { return column_; }

 private:
  size_t column_ = 0;
};

absl::Status Invalid(absl::string_view reason) { return absl::InvalidArgumentError(reason); }

absl::Status WrongType(absl::string_view field, absl::string_view wanted, const Json& value) {
  return Invalid(absl::StrCat("\"", field, "\" must be ", wanted, ", not ", value.type_name()));
}

// The string `object[field]` must be.
absl::StatusOr<std::string> TakeString(Json& object, const char* field) {
  const auto found = object.find(field);
  if (found == object.end()) return Invalid(absl::StrCat("no \"", field, "\""));
  if (!found->is_string()) return WrongType(field, "a string", *found);
  return std::move(found->get_ref<std::string&>());
}

// "node", "id" and "slice": a string or an integer; empty when absent.
absl::StatusOr<std::string> TakeName(Json& object, const char* field) {
  const auto found = object.find(field);
  if (found == object.end()) return std::string();
  std::string name;
  if (found->is_number_unsigned()) {
    name = absl::StrCat(found->get<uint64_t>());
  } else if (found->is_number_integer()) {
    name = absl::StrCat(found->get<int64_t>());
  } else if (found->is_string()) {
    name = std::move(found->get_ref<std::string&>());
  } else {
    return WrongType(field, "a string or an integer", *found);
  }
  if (name.size() > kMaxNameBytes) {
    return Invalid(absl::StrCat("\"", field, "\" has ", name.size(), " bytes, more than the limit ",
                                kMaxNameBytes));
  }
  return name;
}

void AddSpan(std::string text, bool trained, Record& record) {
  RecordSpan span;
  span.text = std::move(text);
  span.trained = trained;
  record.spans.push_back(std::move(span));
}

absl::StatusOr<std::vector<ChatMessage>> TakeMessages(Json& messages) {
  if (!messages.is_array()) return WrongType("messages", "an array", messages);
  std::vector<ChatMessage> result;
  result.reserve(messages.size());
  for (Json& message : messages) {
    const std::string place = absl::StrCat("message ", result.size() + 1);
    if (!message.is_object()) {
      return Invalid(absl::StrCat(place, " must be an object, not ", message.type_name()));
    }
    ChatMessage& added = result.emplace_back();
    auto role = TakeString(message, "role");
    if (!role.ok()) return Annotate(role.status(), place);
    auto content = TakeString(message, "content");
    if (!content.ok()) return Annotate(content.status(), place);
    added.role = *std::move(role);
    added.content = *std::move(content);
  }
  return result;
}

}  // namespace

size_t FindInvalidUtf8(absl::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t at) -> uint32_t {
      return at < text.size() ? static_cast<unsigned char>(text[at]) : 0;
    };
    const uint32_t first = byte(i);
    if (first < 0x80) {
      ++i;
      continue;
    }
    const size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4) return i;
    for (size_t k = 1; k < size; ++k) {
      if ((byte(i + k) & 0xC0) != 0x80) return i;
    }
    const uint32_t second = byte(i + 1);
    const bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
    const bool outside = (first == 0xED && second > 0x9F) || (first == 0xF4 && second > 0x8F);
    if (overlong || outside) return i;
    i += size;
  }
  return absl::string_view::npos;
}

absl::StatusOr<Record> ParseRecordLine(absl::string_view line, ChatFormat format) {
  if (const size_t at = FindInvalidUtf8(line); at != absl::string_view::npos) {
    return Invalid(absl::StrCat("byte ", at + 1, " (0x", absl::BytesToHexString(line.substr(at, 1)),
                                ") is not UTF-8"));
  }
  Json object = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) {
    BreakFinder finder;
    Json::sax_parse(line.begin(), line.end(), &finder);
    return Invalid(absl::StrCat("not valid JSON at byte ", finder.column(), " of the line"));
  }
  if (!object.is_object()) {
    return Invalid(absl::StrCat("must be a JSON object, not ", object.type_name()));
  }
  const bool text = object.contains("text");
  const bool pair = object.contains("prompt") || object.contains("completion");
  const bool chat = object.contains("messages");
  if (int{text} + int{pair} + int{chat} != 1) {
    return Invalid(absl::StrCat(text || pair || chat ? "has more than one of" : "has none of",
                                " \"text\", \"prompt\" with \"completion\", and \"messages\""));
  }
  Record record;
  ASSIGN_OR_RETURN(record.node, TakeName(object, "node"));
  ASSIGN_OR_RETURN(record.id, TakeName(object, "id"));
  ASSIGN_OR_RETURN(record.slice, TakeName(object, "slice"));
  if (text) {
    ASSIGN_OR_RETURN(std::string whole, TakeString(object, "text"));
    AddSpan(std::move(whole), true, record);
  } else if (pair) {
    ASSIGN_OR_RETURN(std::string prompt, TakeString(object, "prompt"));
    ASSIGN_OR_RETURN(std::string completion, TakeString(object, "completion"));
    AddSpan(std::move(prompt), false, record);
    AddSpan(std::move(completion), true, record);
    record.has_completion = true;
  } else {
    ASSIGN_OR_RETURN(const std::vector<ChatMessage> messages, TakeMessages(object["messages"]));
    ASSIGN_OR_RETURN(record.spans, RenderChat(format, messages, /*for_training=*/true));
  }
  return record;
}

}  // namespace fedge
