#include "tools/prepare/hf_tokenizer_json.h"

#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 8;  // of nested pre-tokenizers and post-processors

#define FEDGE_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define FEDGE_SPACES R"(\s*[\r\n]+|\s+(?!\S)|\s+)"

struct KnownExpression {
  absl::string_view name;
  absl::string_view expression;
};
constexpr KnownExpression kExpressions[] = {
    {"llama-bpe", FEDGE_CONTRACTIONS
     R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)" FEDGE_SPACES},
    {"qwen2", FEDGE_CONTRACTIONS
     R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)" FEDGE_SPACES},
    {"gpt-4o",
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)" FEDGE_CONTRACTIONS
     R"(?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)" FEDGE_CONTRACTIONS
     R"(?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|)" FEDGE_SPACES},
};

#undef FEDGE_CONTRACTIONS
#undef FEDGE_SPACES

// The value of `key` where `object` has it with the type asked for; else null.
const Json* Member(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string StringMember(const Json& object, const char* key) {
  const Json* const value = Member(object, key);
  return value != nullptr && value->is_string() ? value->get<std::string>() : "";
}

bool BoolMember(const Json& object, const char* key, bool fallback) {
  const Json* const value = Member(object, key);
  return value != nullptr && value->is_boolean() ? value->get<bool>() : fallback;
}

// Calls `visit` with every step of a (nested) sequence whose steps are listed under `list`.
template <typename Visit>
void ForEachStep(const Json& step, const char* list, int depth, const Visit& visit) {
  const Json* const steps = Member(step, list);
  if (steps == nullptr || !steps->is_array() || depth == kMaxDepth) return visit(step);
  for (const Json& inner : *steps) ForEachStep(inner, list, depth + 1, visit);
}

absl::StatusOr<const Json*> VocabularyOf(const JsonObject& tokenizer) {
  ASSIGN_OR_RETURN(const JsonObject model, tokenizer.Object("model"));
  ASSIGN_OR_RETURN(const std::string type, model.StringOr("type", "BPE"));
  if (type != "BPE") {
    return absl::UnimplementedError(
        absl::StrCat(model.place(), ": type \"", type, "\" is not supported; only BPE is"));
  }
  const Json* const vocabulary = model.Find("vocab");
  if (vocabulary == nullptr || !vocabulary->is_object()) {
    return model.Error("vocab", "is not an object");
  }
  return vocabulary;
}

absl::Status PlaceVocabulary(const JsonObject& tokenizer, int64_t size, TokenizerData& data) {
  ASSIGN_OR_RETURN(const Json* vocabulary, VocabularyOf(tokenizer));
  data.pieces.assign(static_cast<size_t>(size), "");
  data.types.assign(static_cast<size_t>(size), static_cast<int32_t>(TokenType::kUnused));
  for (const auto& [piece, id] : vocabulary->items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > uint64_t{INT32_MAX}) {
      return tokenizer.Error("model.vocab",
                             absl::StrCat("has no id for \"", absl::CHexEscape(piece), "\""));
    }
    RETURN_IF_ERROR(PlacePiece(tokenizer, static_cast<int64_t>(id.get<uint64_t>()), piece,
                               TokenType::kNormal, data));
  }
  return absl::OkStatus();
}

// Calls `merge(left, right)` for each merge, written as "left right" or as a pair.
template <typename Merge>
absl::Status ForEachMerge(const JsonObject& tokenizer, const Merge& merge) {
  ASSIGN_OR_RETURN(const JsonObject model, tokenizer.Object("model"));
  const Json* const merges = model.Find("merges");
  if (merges == nullptr || !merges->is_array()) return model.Error("merges", "is not a list");
  for (const Json& item : *merges) {
    if (item.is_string()) {
      const std::string text = item.get<std::string>();
      const size_t space = text.find(' ', 1);
      if (space == std::string::npos) {
        return model.Error("merges", absl::StrCat("has \"", absl::CHexEscape(text.substr(0, 64)),
                                                  "\" without a space"));
      }
      merge(text.substr(0, space), text.substr(space + 1));
    } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      merge(item[0].get<std::string>(), item[1].get<std::string>());
    } else {
      return model.Error("merges", "has an item that is no pair of pieces");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PlacePiece(const JsonObject& tokenizer, int64_t id, absl::string_view piece,
                        TokenType type, TokenizerData& data) {
  if (id < 0 || id >= static_cast<int64_t>(data.pieces.size())) {
    return tokenizer.Error(
        absl::StrCat("token \"", absl::CHexEscape(piece), "\""),
        absl::StrCat("has id ", id, ", but the embedding has ", data.pieces.size(), " rows"));
  }
  data.pieces[static_cast<size_t>(id)] = std::string(piece);
  data.types[static_cast<size_t>(id)] = static_cast<int32_t>(type);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(const JsonObject& tokenizer) {
  std::vector<AddedToken> tokens;
  const Json* const list = tokenizer.Find("added_tokens");
  if (list == nullptr) return tokens;
  if (!list->is_array()) return tokenizer.Error("added_tokens", "is not a list");
  for (const Json& item : *list) {
    const Json* const id = Member(item, "id");
    AddedToken token;
    token.text = StringMember(item, "content");
    if (id == nullptr || !id->is_number_integer() || token.text.empty()) {
      return tokenizer.Error("added_tokens", "has an item without id or content");
    }
    token.id = id->get<int64_t>();
    token.special = BoolMember(item, "special", false);
    token.strips_right = BoolMember(item, "rstrip", false);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

bool IsCharacterLevel(const JsonObject& tokenizer) {
  const Json* const model = tokenizer.Find("model");
  return model != nullptr && BoolMember(*model, "byte_fallback", false);
}

absl::StatusOr<std::string> PreTokenizerName(const JsonObject& tokenizer) {
  std::vector<std::string> steps;
  const Json* const pre = tokenizer.Find("pre_tokenizer");
  if (pre != nullptr) {
    ForEachStep(*pre, "pretokenizers", 0, [&](const Json& step) {
      const std::string type = StringMember(step, "type");
      const Json* const pattern = Member(step, "pattern");
      if (type == "ByteLevel") {
        if (BoolMember(step, "use_regex", true)) steps.push_back("gpt-2");
      } else if (type == "Split" && pattern != nullptr) {
        steps.push_back(StringMember(*pattern, "Regex"));
      } else if (type == "Digits" && BoolMember(step, "individual_digits", false)) {
        steps.push_back("digits");
      } else {
        steps.push_back(absl::StrCat("step ", type));
      }
    });
  }
  if (steps == std::vector<std::string>{"gpt-2"}) return std::string("gpt-2");
  if (steps == std::vector<std::string>{"digits", "gpt-2"}) return std::string("smollm");
  for (const KnownExpression& known : kExpressions) {
    if (steps.size() == 1 && steps[0] == known.expression) return std::string(known.name);
  }
  std::string shown;
  for (const std::string& step : steps) absl::StrAppend(&shown, shown.empty() ? "" : "; ", step);
  return absl::UnimplementedError(
      absl::StrCat(tokenizer.place(), ": pre_tokenizer [", absl::CHexEscape(shown.substr(0, 240)),
                   "] is not supported; there are gpt-2, smollm, llama-bpe, qwen2 and gpt-4o"));
}

absl::Status ReadByteLevelModel(const JsonObject& tokenizer, int64_t vocabulary,
                                TokenizerData& data) {
  data.model = "gpt2";
  ASSIGN_OR_RETURN(data.pre, PreTokenizerName(tokenizer));
  RETURN_IF_ERROR(PlaceVocabulary(tokenizer, vocabulary, data));
  bool has_space = false;
  RETURN_IF_ERROR(ForEachMerge(tokenizer, [&](const std::string& left, const std::string& right) {
    has_space = has_space || absl::StrContains(left, ' ') || absl::StrContains(right, ' ');
    data.merges.push_back(absl::StrCat(left, " ", right));
  }));
  if (has_space) return tokenizer.Error("model.merges", "has a piece with a space in it");
  return absl::OkStatus();
}

absl::Status ReadCharacterModel(const JsonObject& tokenizer, int64_t vocabulary,
                                TokenizerData& data) {
  data.model = "llama";
  data.pre = "default";
  RETURN_IF_ERROR(PlaceVocabulary(tokenizer, vocabulary, data));
  // SentencePiece merges the pair whose piece has the highest score; a list of merges says the same
  // by its order, so scores that fall with the first merge to a piece give the same result.
  absl::flat_hash_map<std::string, int64_t> ranks;
  int64_t next = 0;
  RETURN_IF_ERROR(ForEachMerge(tokenizer, [&](const std::string& left, const std::string& right) {
    ranks.try_emplace(absl::StrCat(left, right), next++);
  }));
  const auto unmerged = static_cast<float>(-next - 1);
  for (size_t id = 0; id < data.pieces.size(); ++id) {
    const auto rank = ranks.find(data.pieces[id]);
    data.scores.push_back(rank == ranks.end() ? unmerged : -static_cast<float>(rank->second));
    const std::string& piece = data.pieces[id];
    if (piece.size() == 6 && absl::StartsWith(piece, "<0x") && piece[5] == '>') {
      data.types[id] = static_cast<int32_t>(TokenType::kByte);
      data.scores[id] = 0;
    }
  }
  data.add_space_prefix = false;
  const auto visit = [&](const Json& step) {
    const std::string type = StringMember(step, "type");
    const bool prepends =
        type == "Prepend" || (type == "Metaspace" && BoolMember(step, "add_prefix_space", true) &&
                              StringMember(step, "prepend_scheme") != "never");
    if (prepends) data.add_space_prefix = true;
  };
  const Json* const normalizer = tokenizer.Find("normalizer");
  if (normalizer != nullptr) ForEachStep(*normalizer, "normalizers", 0, visit);
  const Json* const pre = tokenizer.Find("pre_tokenizer");
  if (pre != nullptr) ForEachStep(*pre, "pretokenizers", 0, visit);
  return absl::OkStatus();
}

bool TemplateHas(const JsonObject& tokenizer, absl::string_view token, bool in_front) {
  bool found = false;
  const Json* const processor = tokenizer.Find("post_processor");
  if (processor == nullptr) return false;
  ForEachStep(*processor, "processors", 0, [&](const Json& step) {
    const Json* const single = Member(step, "single");
    if (StringMember(step, "type") != "TemplateProcessing" || single == nullptr ||
        !single->is_array() || single->empty()) {
      return;
    }
    const Json* const special = Member(in_front ? single->front() : single->back(), "SpecialToken");
    found = found || (special != nullptr && StringMember(*special, "id") == token);
  });
  return found;
}

}  // namespace fedge
