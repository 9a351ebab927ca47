// Byte-level BPE (GPT-2 and its heirs): the text is cut into words, the bytes of a word are spelled
// in 256 printable characters, and the adjacent pair of the lowest merge rank (the leftmost of
// equals) is merged until no pair has a rank.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/model/pre_tokenizer.h"
#include "common/model/tokenizer_models.h"

namespace fedge {
namespace {

// GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the 68 others for U+0100 and up
// in the order of their values.
class ByteAlphabet {
 public:
  static const ByteAlphabet& Get() {
    static const auto* const kAlphabet = new ByteAlphabet;
    return *kAlphabet;
  }

  // The character of a byte, in UTF-8.
  const std::string& Spell(char byte) const { return spelled_[static_cast<unsigned char>(byte)]; }

  // The bytes that `piece` spells; characters outside the alphabet stand for themselves.
  std::string Read(absl::string_view piece) const {
    std::string bytes;
    for (size_t i = 0; i < piece.size();) {
      const auto first = static_cast<unsigned char>(piece[i]);
      const bool two = first >= 0xC2 && first <= 0xC5 && i + 1 < piece.size() &&
                       (static_cast<unsigned char>(piece[i + 1]) & 0xC0) == 0x80;
      const int code = two ? ((first & 0x1F) << 6) | (piece[i + 1] & 0x3F) : first;
      const int byte = code < kCodes && (two || first < 0x80) ? byte_of_[code] : -1;
      bytes.push_back(byte >= 0 ? static_cast<char>(byte) : piece[i]);
      i += byte >= 0 && two ? 2 : 1;
    }
    return bytes;
  }

 private:
  static constexpr int kCodes = 256 + 68;

  ByteAlphabet() {
    std::fill(byte_of_, byte_of_ + kCodes, -1);
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
      const int code = itself ? byte : next++;
      byte_of_[code] = byte;
      std::string& spelled = spelled_[byte];
      if (code >= 0x80) {
        spelled.push_back(static_cast<char>(0xC0 | (code >> 6)));
        spelled.push_back(static_cast<char>(0x80 | (code & 0x3F)));
      } else {
        spelled.push_back(static_cast<char>(code));
      }
    }
  }

  std::string spelled_[256];
  int byte_of_[kCodes];
};

struct MergeRule {
  int32_t rank = 0;
  TokenId result = kNoToken;
};
using MergeTable = absl::flat_hash_map<std::pair<TokenId, TokenId>, MergeRule>;

struct Symbol {
  TokenId id = kNoToken;
  int32_t previous = -1;
  int32_t next = -1;
  bool merged = false;  // into its left neighbour
};

struct Pair {
  int32_t rank = 0;
  int32_t left = 0;
  TokenId left_id = kNoToken;  // both ids when the pair was seen: tell outdated entries
  TokenId right_id = kNoToken;
  TokenId result = kNoToken;

  bool operator<(const Pair& other) const {  // std::push_heap keeps the largest in front
    return rank > other.rank || (rank == other.rank && left > other.left);
  }
};

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(Vocabulary vocabulary, MergeTable merges, PreTokenizer pre)
      : Tokenizer(std::move(vocabulary)),
        merges_(std::move(merges)),
        pre_(pre),
        whole_words_first_(pre == PreTokenizer::kLlamaBpe) {
    for (int byte = 0; byte < 256; ++byte) {
      byte_ids_[byte] = FindSpellable(ByteAlphabet::Get().Spell(static_cast<char>(byte)));
    }
  }

 protected:
  void EncodePlain(absl::string_view text, bool /*after_special*/,
                   std::vector<TokenId>& ids) const override {
    // Where the ids of a word seen before stand in `ids`: text repeats its words.
    absl::flat_hash_map<absl::string_view, std::pair<size_t, size_t>> seen;
    SplitWords(pre_, text, [&](absl::string_view word) {
      const size_t begin = ids.size();
      if (word.size() > kMaxCachedBytes) return EncodeWord(word, ids);
      const auto found = seen.find(word);
      if (found != seen.end()) {
        for (size_t i = 0; i < found->second.second; ++i) {
          ids.push_back(ids[found->second.first + i]);
        }
        return;
      }
      EncodeWord(word, ids);
      if (seen.size() < kMaxCachedWords) seen.emplace(word, std::pair(begin, ids.size() - begin));
    });
  }

  std::string PieceBytes(TokenId id) const override {
    return ByteAlphabet::Get().Read(vocabulary().piece(id));
  }

 private:
  static constexpr size_t kMaxCachedBytes = 64;
  static constexpr size_t kMaxCachedWords = size_t{1} << 18;
  static constexpr size_t kMaxWordBytes = size_t{1} << 28;  // symbols count in 32 bits

  TokenId FindSpellable(absl::string_view piece) const {
    const TokenId id = vocabulary().Find(piece);
    return id != kNoToken && vocabulary().IsSpellable(id) ? id : kNoToken;
  }

  void EncodeWord(absl::string_view word, std::vector<TokenId>& ids) const {
    if (whole_words_first_ && word.size() <= kMaxPieceBytes) {
      std::string spelled;
      for (const char byte : word) absl::StrAppend(&spelled, ByteAlphabet::Get().Spell(byte));
      const TokenId id = FindSpellable(spelled);
      if (id != kNoToken) {
        ids.push_back(id);
        return;
      }
    }
    for (size_t begin = 0; begin < word.size(); begin += kMaxWordBytes) {
      Merge(word.substr(begin, kMaxWordBytes), ids);
    }
  }

  void AddPair(const std::vector<Symbol>& symbols, int32_t left, std::vector<Pair>& heap) const {
    if (left < 0) return;
    const Symbol& a = symbols[static_cast<size_t>(left)];
    if (a.next < 0) return;
    const TokenId right_id = symbols[static_cast<size_t>(a.next)].id;
    const auto rule = merges_.find({a.id, right_id});
    if (rule == merges_.end()) return;
    heap.push_back({rule->second.rank, left, a.id, right_id, rule->second.result});
    std::push_heap(heap.begin(), heap.end());
  }

  void Merge(absl::string_view word, std::vector<TokenId>& ids) const {
    const auto count = static_cast<int32_t>(word.size());
    std::vector<Symbol> symbols(word.size());
    for (int32_t i = 0; i < count; ++i) {
      const auto byte = static_cast<unsigned char>(word[static_cast<size_t>(i)]);
      symbols[static_cast<size_t>(i)] = {byte_ids_[byte], i - 1, i + 1 < count ? i + 1 : -1, false};
    }
    std::vector<Pair> heap;
    for (int32_t i = 0; i + 1 < count; ++i) AddPair(symbols, i, heap);
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end());
      const Pair pair = heap.back();
      heap.pop_back();
      Symbol& left = symbols[static_cast<size_t>(pair.left)];
      if (left.merged || left.id != pair.left_id || left.next < 0) continue;
      Symbol& right = symbols[static_cast<size_t>(left.next)];
      if (right.id != pair.right_id) continue;
      left.id = pair.result;
      right.merged = true;
      left.next = right.next;
      if (right.next >= 0) symbols[static_cast<size_t>(right.next)].previous = pair.left;
      AddPair(symbols, left.previous, heap);
      AddPair(symbols, pair.left, heap);
    }
    for (const Symbol& symbol : symbols) {
      if (symbol.merged) continue;
      // A byte that the vocabulary does not have: unknown, or left out as llama.cpp does.
      const TokenId id = symbol.id == kNoToken ? vocabulary().unknown : symbol.id;
      if (id != kNoToken) ids.push_back(id);
    }
  }

  MergeTable merges_;
  PreTokenizer pre_;
  bool whole_words_first_;  // a word that is a token is taken as it is, whatever the merges say
  TokenId byte_ids_[256];
};

constexpr char kMerges[] = "tokenizer.ggml.merges";

absl::Status BadMerge(const GgufFile& file, size_t rank, absl::string_view text,
                      absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", kMerges, ": merge ", rank,
                                                 " \"", absl::CHexEscape(text.substr(0, 64)),
                                                 "\": ", reason));
}

absl::StatusOr<MergeTable> ReadMerges(const GgufFile& file, const Vocabulary& vocabulary) {
  const GgufValue* const value = file.Find(kMerges);
  if (value == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": no ", kMerges, ": a gpt2 vocabulary cannot be used without its merges"));
  }
  const auto merges = value->AsStrings();
  if (!merges.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": ", kMerges, ": ", merges.status().message()));
  }
  if (merges->size() > kMaxVocabularyTokens) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", kMerges, ": ", merges->size(),
                                                   " merges exceed the limit ",
                                                   kMaxVocabularyTokens));
  }
  MergeTable table;
  table.reserve(merges->size());
  std::string whole;
  for (size_t rank = 0; rank < merges->size(); ++rank) {
    const absl::string_view text = (*merges)[rank];
    const size_t space = text.find(' ', 1);
    if (space == absl::string_view::npos || space + 1 == text.size()) {
      return BadMerge(file, rank, text, "not two pieces with a space between");
    }
    const absl::string_view left = text.substr(0, space);
    const absl::string_view right = text.substr(space + 1);
    whole.assign(left.data(), left.size());
    whole.append(right.data(), right.size());
    const TokenId left_id = vocabulary.Find(left);
    const TokenId right_id = vocabulary.Find(right);
    const TokenId result = vocabulary.Find(whole);
    if (left_id == kNoToken) return BadMerge(file, rank, text, "the left piece is no token");
    if (right_id == kNoToken) return BadMerge(file, rank, text, "the right piece is no token");
    if (result == kNoToken) return BadMerge(file, rank, text, "the merged piece is no token");
    if (!vocabulary.IsSpellable(result)) continue;
    // The first of two equal merges counts.
    table.emplace(std::pair(left_id, right_id), MergeRule{static_cast<int32_t>(rank), result});
  }
  return table;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeBpeTokenizer(const GgufFile& file) {
  ASSIGN_OR_RETURN(const absl::string_view name, file.GetStringOr("tokenizer.ggml.pre", "default"));
  const std::optional<PreTokenizer> pre = FindPreTokenizer(name);
  if (!pre.has_value()) {
    return absl::UnimplementedError(absl::StrCat(
        file.path(), ": pre-tokenizer \"", absl::CHexEscape(name.substr(0, 64)),
        "\" is not supported; supported are llama-bpe, qwen2, gpt-4o, gpt-2, smollm and "
        "default"));
  }
  VocabularyDefaults defaults;
  defaults.add_bos = *pre == PreTokenizer::kLlamaBpe;
  ASSIGN_OR_RETURN(Vocabulary vocabulary, ReadVocabulary(file, defaults));
  ASSIGN_OR_RETURN(MergeTable merges, ReadMerges(file, vocabulary));
  return std::unique_ptr<Tokenizer>(
      new BpeTokenizer(std::move(vocabulary), std::move(merges), *pre));
}

}  // namespace fedge
