// SentencePiece BPE as llama.cpp runs it: spaces become U+2581, the text is cut into UTF-8
// characters, and the adjacent pair whose concatenation is the piece of the highest score (the
// leftmost of equals) is merged until no pair is a piece. What is no piece then becomes bytes.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/base/status.h"
#include "common/model/tokenizer_models.h"

namespace fedge {
namespace {

constexpr char kSpaceMark[] = "\xe2\x96\x81";  // U+2581
constexpr size_t kSpaceMarkBytes = 3;

// Length that a first byte announces; stray continuation bytes stand alone.
size_t CharacterBytes(char first) {
  const auto byte = static_cast<unsigned char>(first);
  if (byte >= 0xF0) return 4;
  if (byte >= 0xE0) return 3;
  return byte >= 0xC0 ? 2 : 1;
}

struct Symbol {
  uint32_t begin = 0;
  uint32_t size = 0;  // 0: merged into its left neighbour
  int32_t previous = -1;
  int32_t next = -1;
};

struct Pair {
  float score = 0;
  int32_t left = 0;
  int32_t right = 0;
  uint32_t size = 0;  // of both symbols when the pair was seen: tells outdated entries

  bool operator<(const Pair& other) const {  // std::push_heap keeps the largest in front
    return score < other.score || (score == other.score && left > other.left);
  }
};

class SpmTokenizer final : public Tokenizer {
 public:
  SpmTokenizer(Vocabulary vocabulary, bool dummy_space)
      : Tokenizer(std::move(vocabulary)), dummy_space_(dummy_space) {
    for (const std::string& piece : this->vocabulary().pieces) {
      longest_piece_ = std::max(longest_piece_, piece.size());
      merges_across_words_ = merges_across_words_ || WordEnd(piece) < piece.size();
    }
    const std::vector<TokenId>& bytes = this->vocabulary().byte_tokens;
    spells_space_mark_ = std::all_of(kSpaceMark, kSpaceMark + kSpaceMarkBytes, [&](char c) {
      return bytes[static_cast<unsigned char>(c)] != kNoToken;
    });
  }

 protected:
  void EncodePlain(absl::string_view text, bool after_special,
                   std::vector<TokenId>& ids) const override {
    std::string escaped = after_special && dummy_space_ ? kSpaceMark : "";
    while (true) {
      const size_t mark = spells_space_mark_ ? text.find(kSpaceMark) : absl::string_view::npos;
      absl::StrAppend(&escaped, absl::StrReplaceAll(text.substr(0, mark), {{" ", kSpaceMark}}));
      EncodeEscaped(escaped, ids);
      if (mark == absl::string_view::npos) return;
      // A U+2581 of the text itself must not come back as a space.
      AppendBytes(kSpaceMark, ids);
      text.remove_prefix(mark + kSpaceMarkBytes);
      escaped.clear();
    }
  }

  std::string PieceBytes(TokenId id) const override {
    return absl::StrReplaceAll(vocabulary().piece(id), {{kSpaceMark, " "}});
  }

  bool AddsDummySpace() const override { return dummy_space_; }

 private:
  static constexpr size_t kMaxStretchBytes = size_t{1} << 26;
  static constexpr size_t kMaxCachedWords = size_t{1} << 18;

  TokenId FindSpellable(absl::string_view piece) const {
    if (piece.size() > longest_piece_) return kNoToken;
    const TokenId id = vocabulary().Find(piece);
    return id != kNoToken && vocabulary().IsSpellable(id) ? id : kNoToken;
  }

  static std::vector<Symbol> SplitCharacters(absl::string_view text) {
    std::vector<Symbol> symbols;
    symbols.reserve(text.size());
    for (size_t begin = 0; begin < text.size();) {
      const size_t size = std::min(CharacterBytes(text[begin]), text.size() - begin);
      const auto index = static_cast<int32_t>(symbols.size());
      symbols.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(size), index - 1,
                         begin + size == text.size() ? -1 : index + 1});
      begin += size;
    }
    return symbols;
  }

  void AddPair(absl::string_view text, const std::vector<Symbol>& symbols, int32_t left,
               int32_t right, std::vector<Pair>& heap) const {
    if (left < 0 || right < 0) return;
    const Symbol& a = symbols[static_cast<size_t>(left)];
    const uint32_t size = a.size + symbols[static_cast<size_t>(right)].size;
    const TokenId id = FindSpellable(text.substr(a.begin, size));
    if (id == kNoToken) return;
    const std::vector<float>& scores = vocabulary().scores;
    heap.push_back({scores.empty() ? 0 : scores[static_cast<size_t>(id)], left, right, size});
    std::push_heap(heap.begin(), heap.end());
  }

  void EncodeEscaped(absl::string_view text, std::vector<TokenId>& ids) const {
    // Where the ids of a word seen before stand in `ids`: text repeats its words.
    absl::flat_hash_map<absl::string_view, std::pair<size_t, size_t>> seen;
    while (!text.empty()) {
      const absl::string_view word =
          text.substr(0, merges_across_words_ ? text.size() : WordEnd(text));
      text.remove_prefix(word.size());
      const auto found = seen.find(word);
      if (found != seen.end()) {
        for (size_t i = 0; i < found->second.second; ++i) {
          ids.push_back(ids[found->second.first + i]);
        }
        continue;
      }
      const size_t first = ids.size();
      // Symbols count in 32 bits; a border every 64 MiB changes no word of a real text.
      for (size_t begin = 0; begin < word.size(); begin += kMaxStretchBytes) {
        Merge(word.substr(begin, kMaxStretchBytes), ids);
      }
      if (seen.size() < kMaxCachedWords) seen.emplace(word, std::pair(first, ids.size() - first));
    }
  }

  // The end of the word in front: behind its spaces, at the next space.
  static size_t WordEnd(absl::string_view text) {
    size_t end = 0;
    while (absl::StartsWith(text.substr(end), kSpaceMark)) end += kSpaceMarkBytes;
    return std::min(text.find(kSpaceMark, end), text.size());
  }

  void Merge(absl::string_view text, std::vector<TokenId>& ids) const {
    std::vector<Symbol> symbols = SplitCharacters(text);
    std::vector<Pair> heap;
    for (size_t i = 1; i < symbols.size(); ++i) {
      AddPair(text, symbols, static_cast<int32_t>(i) - 1, static_cast<int32_t>(i), heap);
    }
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end());
      const Pair pair = heap.back();
      heap.pop_back();
      Symbol& left = symbols[static_cast<size_t>(pair.left)];
      Symbol& right = symbols[static_cast<size_t>(pair.right)];
      if (left.size == 0 || right.size == 0 || left.size + right.size != pair.size) continue;
      left.size += right.size;
      right.size = 0;
      left.next = right.next;
      if (right.next >= 0) symbols[static_cast<size_t>(right.next)].previous = pair.left;
      AddPair(text, symbols, left.previous, pair.left, heap);
      AddPair(text, symbols, pair.left, left.next, heap);
    }
    for (int32_t i = 0; i != -1; i = symbols[static_cast<size_t>(i)].next) {
      const Symbol& symbol = symbols[static_cast<size_t>(i)];
      const absl::string_view piece = text.substr(symbol.begin, symbol.size);
      const TokenId id = FindSpellable(piece);
      if (id != kNoToken) {
        ids.push_back(id);
      } else {
        AppendBytes(piece, ids);
      }
    }
  }

  void AppendBytes(absl::string_view bytes, std::vector<TokenId>& ids) const {
    for (size_t i = 0; i < bytes.size(); ++i) {
      TokenId id = vocabulary().byte_tokens[static_cast<unsigned char>(bytes[i])];
      if (id == kNoToken) id = FindSpellable(bytes.substr(i, 1));
      if (id == kNoToken) id = vocabulary().unknown;
      if (id != kNoToken) ids.push_back(id);
    }
  }

  bool dummy_space_;
  size_t longest_piece_ = 0;
  // Whether some piece has a space behind another character. If none has, words are independent.
  bool merges_across_words_ = false;
  bool spells_space_mark_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeSpmTokenizer(const GgufFile& file) {
  VocabularyDefaults defaults;
  defaults.unknown = 0;  // so that every text can be written, whatever bytes are missing
  defaults.bos = 1;
  defaults.eos = 2;
  defaults.add_bos = true;
  ASSIGN_OR_RETURN(Vocabulary vocabulary, ReadVocabulary(file, defaults));
  ASSIGN_OR_RETURN(const bool dummy_space, file.GetBoolOr("tokenizer.ggml.add_space_prefix", true));
  return std::unique_ptr<Tokenizer>(new SpmTokenizer(std::move(vocabulary), dummy_space));
}

}  // namespace fedge
