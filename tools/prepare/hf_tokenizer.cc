#include "tools/prepare/hf_tokenizer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/base/status.h"
#include "tools/prepare/hf_tokenizer_json.h"
#include "tools/recipes/sentencepiece_model.h"

namespace fedge {
namespace {

using Json = nlohmann::json;

constexpr char kSpaceMark[] = "\xe2\x96\x81";  // U+2581
constexpr uint64_t kMaxModelBytes = uint64_t{1} << 26;
constexpr uint64_t kMaxTemplateBytes = uint64_t{1} << 20;

// Tokens that are control tokens whatever their file says, as llama.cpp's converter has it.
bool LooksSpecial(absl::string_view text) {
  return text == "<pad>" || text == "<mask>" || text == "<2mass>" || text == "[@BOS@]" ||
         (absl::StartsWith(text, "<|") && absl::EndsWith(text, "|>")) ||
         (absl::StartsWith(text, "<unused") && absl::EndsWith(text, ">"));
}

// One tokenizer being put together.
class HfTokenizerReader {
 public:
  HfTokenizerReader(absl::string_view dir, const JsonObject& config, int64_t vocabulary, Env& env)
      : dir_(dir), config_(config), vocabulary_(vocabulary), env_(env) {}

  absl::StatusOr<TokenizerData> Read() {
    ASSIGN_OR_RETURN(tokenizer_, JsonObject::ReadIfThere(JoinPath(dir_, "tokenizer.json"), env_));
    ASSIGN_OR_RETURN(settings_,
                     JsonObject::ReadIfThere(JoinPath(dir_, "tokenizer_config.json"), env_));
    const std::string model_path = JoinPath(dir_, "tokenizer.model");
    const bool has_json = tokenizer_.Has("model");
    if (env_.Exists(model_path) && (!has_json || IsCharacterLevel(tokenizer_))) {
      RETURN_IF_ERROR(ReadSentencePiece(model_path));
    } else if (!has_json) {
      return absl::NotFoundError(absl::StrCat(
          dir_, ": neither tokenizer.json nor tokenizer.model; save the tokenizer with the model"));
    } else if (IsCharacterLevel(tokenizer_)) {
      RETURN_IF_ERROR(ReadCharacterModel(tokenizer_, vocabulary_, data_));
    } else {
      RETURN_IF_ERROR(ReadByteLevelModel(tokenizer_, vocabulary_, data_));
    }
    RETURN_IF_ERROR(PlaceAddedTokens());
    FillHoles();
    RETURN_IF_ERROR(ReadSpecialIds());
    RETURN_IF_ERROR(ReadFlags());
    const auto has = [this](absl::string_view piece) {
      return std::find(data_.pieces.begin(), data_.pieces.end(), piece) != data_.pieces.end();
    };
    data_.has_phi3_pieces = has("<unk>") && has("<s>") && has("<|endoftext|>");
    RETURN_IF_ERROR(ReadChatTemplate());
    return std::move(data_);
  }

 private:
  absl::Status ReadSentencePiece(const std::string& path) {
    ASSIGN_OR_RETURN(const std::string bytes, env_.ReadFile(path, kMaxModelBytes));
    const absl::StatusOr<SentencePieceVocab> vocab = ParseSentencePieceModel(bytes);
    if (!vocab.ok()) return Annotate(vocab.status(), path);
    if (vocab->model_type != SentencePieceVocab::ModelType::kBpe) {
      return absl::UnimplementedError(
          absl::StrCat(path, ": not of SentencePiece's BPE type, the only one that is supported"));
    }
    if (static_cast<int64_t>(vocab->pieces.size()) > vocabulary_) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", vocab->pieces.size(),
                                                     " pieces, but the embedding has ", vocabulary_,
                                                     " rows"));
    }
    data_.model = "llama";
    data_.pre = "default";
    data_.pieces.assign(static_cast<size_t>(vocabulary_), "");
    data_.types.assign(data_.pieces.size(), static_cast<int32_t>(TokenType::kUnused));
    data_.scores.assign(data_.pieces.size(), -10000.0f);
    for (size_t i = 0; i < vocab->pieces.size(); ++i) {
      data_.pieces[i] = vocab->pieces[i].text;
      data_.types[i] = static_cast<int32_t>(vocab->pieces[i].type);
      data_.scores[i] = vocab->pieces[i].score;
    }
    const auto id = [](int32_t value) {
      return value < 0 ? std::nullopt : std::optional<TokenId>(value);
    };
    data_.unknown = id(vocab->unk_id);
    data_.bos = id(vocab->bos_id);
    data_.eos = id(vocab->eos_id);
    data_.padding = id(vocab->pad_id);
    data_.add_space_prefix = vocab->add_dummy_prefix;
    return absl::OkStatus();
  }

  // Of tokenizer.json, else of tokenizer_config.json's added_tokens_decoder ({"32000": {...}}).
  absl::StatusOr<std::vector<AddedToken>> AddedTokens() const {
    if (tokenizer_.Has("added_tokens")) return ReadAddedTokens(tokenizer_);
    std::vector<AddedToken> tokens;
    ASSIGN_OR_RETURN(const JsonObject decoder, settings_.Object("added_tokens_decoder"));
    const Json* const all = settings_.Find("added_tokens_decoder");
    if (all == nullptr) return tokens;
    for (const auto& item : all->items()) {
      ASSIGN_OR_RETURN(const JsonObject entry, decoder.Object(item.key()));
      AddedToken token;
      ASSIGN_OR_RETURN(token.text, entry.StringOr("content", ""));
      ASSIGN_OR_RETURN(token.special, entry.BoolOr("special", false));
      ASSIGN_OR_RETURN(token.strips_right, entry.BoolOr("rstrip", false));
      if (!absl::SimpleAtoi(item.key(), &token.id) || token.text.empty()) {
        return entry.Error("content", "is missing, or the token has no number");
      }
      tokens.push_back(std::move(token));
    }
    return tokens;
  }

  absl::Status PlaceAddedTokens() {
    ASSIGN_OR_RETURN(const std::vector<AddedToken> tokens, AddedTokens());
    const bool sentence_piece = data_.model == "llama";
    for (const AddedToken& token : tokens) {
      const bool control = token.special || LooksSpecial(token.text);
      if (control && token.strips_right) data_.specials_strip_right = true;
      // SentencePiece spells spaces of its own tokens with a mark; text has real ones.
      const std::string text = sentence_piece && !control
                                   ? absl::StrReplaceAll(token.text, {{kSpaceMark, " "}})
                                   : token.text;
      const bool known = token.id >= 0 && token.id < vocabulary_;
      const int32_t before = known ? data_.types[static_cast<size_t>(token.id)] : 0;
      const bool keeps_type = before == static_cast<int32_t>(TokenType::kByte) ||
                              before == static_cast<int32_t>(TokenType::kUnknown);
      if (known && keeps_type) continue;
      RETURN_IF_ERROR(PlacePiece(tokenizer_, token.id, text,
                                 control ? TokenType::kControl : TokenType::kUserDefined, data_));
    }
    return absl::OkStatus();
  }

  void FillHoles() {
    for (size_t id = 0; id < data_.pieces.size(); ++id) {
      if (data_.pieces[id].empty()) data_.pieces[id] = absl::StrCat("[PAD", id, "]");
    }
  }

  // The id of a token that tokenizer_config.json names, as a string or as {"content": ...}.
  absl::StatusOr<std::optional<TokenId>> NamedToken(absl::string_view key) {
    const Json* value = settings_.Find(key);
    if (value != nullptr && value->is_object()) {
      const auto content = value->find("content");
      value = content == value->end() ? nullptr : &*content;
    }
    if (value == nullptr || !value->is_string()) return std::optional<TokenId>();
    if (index_.empty()) {
      for (size_t id = 0; id < data_.pieces.size(); ++id) {
        index_.emplace(data_.pieces[id], static_cast<TokenId>(id));
      }
    }
    const auto found = index_.find(value->get<std::string>());
    if (found == index_.end()) return std::optional<TokenId>();
    return std::optional<TokenId>(found->second);
  }

  // config.json's id, which may be a list of them.
  absl::StatusOr<std::optional<TokenId>> ConfiguredId(absl::string_view key) const {
    const Json* value = config_.Find(key);
    if (value != nullptr && value->is_array() && !value->empty()) value = &value->front();
    if (value == nullptr || !value->is_number_integer()) return std::optional<TokenId>();
    const int64_t id = value->get<int64_t>();
    if (id < 0) return std::optional<TokenId>();  // -1: none
    if (id >= vocabulary_) {
      return config_.Error(key, absl::StrCat("is ", id, " in a vocabulary of ", vocabulary_));
    }
    return std::optional<TokenId>(static_cast<TokenId>(id));
  }

  absl::Status ReadSpecialIds() {
    const struct {
      absl::string_view name;
      absl::string_view config_key;
      std::optional<TokenId>* id;
    } specials[] = {{"bos_token", "bos_token_id", &data_.bos},
                    {"eos_token", "eos_token_id", &data_.eos},
                    {"unk_token", "unk_token_id", &data_.unknown},
                    {"pad_token", "pad_token_id", &data_.padding}};
    for (const auto& special : specials) {
      ASSIGN_OR_RETURN(std::optional<TokenId> id, NamedToken(special.name));
      if (!id.has_value()) {
        ASSIGN_OR_RETURN(id, ConfiguredId(special.config_key));
      }
      if (id.has_value()) *special.id = id;
    }
    if (data_.model != "llama") return absl::OkStatus();
    if (data_.unknown.has_value()) {
      data_.types[static_cast<size_t>(*data_.unknown)] = static_cast<int32_t>(TokenType::kUnknown);
    }
    return absl::OkStatus();
  }

  absl::Status ReadFlags() {
    const auto piece = [this](const std::optional<TokenId>& id) {
      return id.has_value() ? data_.pieces[static_cast<size_t>(*id)] : std::string();
    };
    const auto read = [&](absl::string_view key, const std::optional<TokenId>& id, bool in_front,
                          std::optional<bool>& flag) -> absl::Status {
      if (settings_.Has(key)) {
        ASSIGN_OR_RETURN(flag, settings_.BoolOr(key, false));
      } else if (tokenizer_.Has("post_processor")) {
        flag = id.has_value() && TemplateHas(tokenizer_, piece(id), in_front);
      } else if (data_.model == "gpt2") {
        flag = false;
      }
      if (!id.has_value()) flag = false;
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(read("add_bos_token", data_.bos, true, data_.add_bos));
    RETURN_IF_ERROR(read("add_eos_token", data_.eos, false, data_.add_eos));
    if (data_.model == "llama" && settings_.Has("add_prefix_space")) {
      ASSIGN_OR_RETURN(data_.add_space_prefix, settings_.BoolOr("add_prefix_space", true));
    }
    return absl::OkStatus();
  }

  absl::Status ReadChatTemplate() {
    const std::string path = JoinPath(dir_, "chat_template.jinja");
    if (env_.Exists(path)) {
      ASSIGN_OR_RETURN(data_.chat_template, env_.ReadFile(path, kMaxTemplateBytes));
      return absl::OkStatus();
    }
    const Json* const value = settings_.Find("chat_template");
    if (value == nullptr) return absl::OkStatus();
    if (value->is_string()) data_.chat_template = value->get<std::string>();
    if (!value->is_array()) return absl::OkStatus();
    for (const Json& item : *value) {  // [{"name": "default", "template": ...}, ...]
      const auto text = [&item](const char* key) {
        const bool has = item.is_object() && item.contains(key) && item[key].is_string();
        return has ? item[key].get<std::string>() : std::string();
      };
      if (text("name") == "default") data_.chat_template = text("template");
    }
    return absl::OkStatus();
  }

  const std::string dir_;
  const JsonObject& config_;
  const int64_t vocabulary_;
  Env& env_;
  JsonObject tokenizer_;  // tokenizer.json
  JsonObject settings_;   // tokenizer_config.json
  TokenizerData data_;
  absl::flat_hash_map<std::string, TokenId> index_;
};

}  // namespace

absl::StatusOr<TokenizerData> ReadHfTokenizer(absl::string_view dir, const JsonObject& config,
                                              int64_t vocabulary, Env& env) {
  return HfTokenizerReader(dir, config, vocabulary, env).Read();
}

}  // namespace fedge
