#include "common/model/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/model/tokenizer_models.h"

namespace fedge {
namespace {

bool Within(absl::Span<const std::pair<size_t, size_t>> ranges, size_t begin, size_t end) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), begin,
                                      [](size_t position, const std::pair<size_t, size_t>& range) {
                                        return position < range.first;
                                      });
  return after != ranges.begin() && end <= std::prev(after)->second;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(const absl::string_view model, file.GetString("tokenizer.ggml.model"));
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer;
  if (model == "llama") {
    tokenizer = MakeSpmTokenizer(file);
  } else if (model == "gpt2") {
    tokenizer = MakeBpeTokenizer(file);
  } else {
    return absl::UnimplementedError(
        absl::StrCat(file.path(), ": tokenizer model \"", absl::CHexEscape(model.substr(0, 64)),
                     "\" is not supported; supported are llama and gpt2"));
  }
  RETURN_IF_ERROR(tokenizer.status());
  ASSIGN_OR_RETURN(const absl::string_view chat, file.GetStringOr("tokenizer.chat_template", ""));
  (*tokenizer)->chat_template_ = std::string(chat);
  return std::shared_ptr<const Tokenizer>(*std::move(tokenizer));
}

bool Tokenizer::IsSpecial(TokenId id) const {
  const TokenType type = vocabulary_.type(id);
  return type == TokenType::kControl || type == TokenType::kUnknown ||
         type == TokenType::kUserDefined;
}

// Cuts every occurrence of `token` out of the text fragments. Control and unknown tokens only count
// inside the `allowed` ranges; user-defined ones everywhere.
void Tokenizer::SplitAt(TokenId token, absl::string_view text,
                        absl::Span<const std::pair<size_t, size_t>> allowed,
                        std::vector<Fragment>& fragments) const {
  const bool everywhere = vocabulary_.type(token) == TokenType::kUserDefined;
  const bool strips = vocabulary_.strips_right[static_cast<size_t>(token)];
  const std::string& piece = vocabulary_.piece(token);
  std::vector<Fragment> result;
  for (const Fragment& fragment : fragments) {
    if (fragment.token != kNoToken) {
      result.push_back(fragment);
      continue;
    }
    size_t begin = fragment.begin;
    size_t search = begin;
    while (true) {
      const size_t match = text.substr(0, fragment.end).find(piece, search);
      if (match == absl::string_view::npos) break;
      if (!everywhere && !Within(allowed, match, match + piece.size())) {
        search = match + 1;
        continue;
      }
      if (match > begin) result.push_back({begin, match, kNoToken});
      begin = match + piece.size();
      result.push_back({match, begin, token});
      while (strips && begin < fragment.end &&
             absl::ascii_isspace(static_cast<unsigned char>(text[begin]))) {
        ++begin;
      }
      search = begin;
    }
    if (begin < fragment.end) result.push_back({begin, fragment.end, kNoToken});
  }
  fragments = std::move(result);
}

void Tokenizer::AppendParts(absl::Span<const TextPart> parts, bool& after_special,
                            std::vector<TokenId>& ids) const {
  std::string joined;
  absl::string_view text;
  std::vector<std::pair<size_t, size_t>> allowed;  // where control tokens may stand
  size_t size = 0;
  for (const TextPart& part : parts) {
    if (part.parse_special && !part.text.empty()) {
      if (!allowed.empty() && allowed.back().second == size) {
        allowed.back().second += part.text.size();
      } else {
        allowed.emplace_back(size, size + part.text.size());
      }
    }
    size += part.text.size();
  }
  if (size == 0) return;
  if (parts.size() == 1) {
    text = parts[0].text;
  } else {
    joined.reserve(size);
    for (const TextPart& part : parts) absl::StrAppend(&joined, part.text);
    text = joined;
  }

  std::vector<Fragment> fragments = {{0, size, kNoToken}};
  for (const TokenId token : special_pieces_.Occurring(text)) {
    if (allowed.empty() && vocabulary_.type(token) != TokenType::kUserDefined) continue;
    SplitAt(token, text, allowed, fragments);
  }
  for (const Fragment& fragment : fragments) {
    after_special = after_special || fragment.token != kNoToken;
    if (fragment.token != kNoToken) {
      ids.push_back(fragment.token);
      continue;
    }
    EncodePlain(text.substr(fragment.begin, fragment.end - fragment.begin), after_special, ids);
    after_special = false;
  }
}

std::vector<TokenId> Tokenizer::Encode(absl::string_view text, const EncodeOptions& options) const {
  std::vector<TokenId> ids;
  if (options.add_special && !options.continuation && vocabulary_.add_bos) {
    ids.push_back(vocabulary_.bos);
  }
  bool after_special = !options.continuation;
  const TextPart part = {text, options.parse_special};
  AppendParts(absl::MakeConstSpan(&part, 1), after_special, ids);
  if (options.add_special && vocabulary_.add_eos) ids.push_back(vocabulary_.eos);
  return ids;
}

std::string Tokenizer::TokenBytes(TokenId id, bool special) const {
  if (id < 0 || id >= vocab_size()) return "";
  switch (vocabulary_.type(id)) {
    case TokenType::kControl:
    case TokenType::kUnknown:
      return special ? vocabulary_.piece(id) : "";
    case TokenType::kUserDefined:
      return vocabulary_.piece(id);
    case TokenType::kByte: {
      const std::string& piece = vocabulary_.piece(id);  // "<0xHH>", checked by ReadVocabulary
      return absl::HexStringToBytes(absl::string_view(piece).substr(3, 2));
    }
    case TokenType::kNormal:
    case TokenType::kUnused:
      break;
  }
  return PieceBytes(id);
}

std::string Tokenizer::Decode(absl::Span<const TokenId> ids, bool special) const {
  std::string text;
  bool after_special = true;
  for (const TokenId id : ids) {
    if (id < 0 || id >= vocab_size()) continue;
    const std::string bytes = TokenBytes(id, special);
    absl::string_view kept = bytes;
    if (IsSpecial(id)) {
      after_special = true;
    } else {
      if (after_special && AddsDummySpace() && absl::StartsWith(kept, " ")) kept.remove_prefix(1);
      after_special = false;
    }
    absl::StrAppend(&text, kept);
  }
  return text;
}

bool Tokenizer::IsEndOfGeneration(TokenId id) const {
  const std::vector<TokenId>& ends = vocabulary_.end_of_generation;
  return std::binary_search(ends.begin(), ends.end(), id);
}

}  // namespace fedge
