#include "common/model/special_pieces.h"

#include <algorithm>
#include <string>

namespace fedge {
namespace {

size_t Byte(char c) { return static_cast<unsigned char>(c); }

}  // namespace

SpecialPieces::SpecialPieces(const Vocabulary& vocabulary)
    : vocabulary_(vocabulary), lengths_(256) {
  for (const TokenId id : vocabulary.special) {
    const std::string& piece = vocabulary.piece(id);
    rank_.emplace(id, static_cast<uint32_t>(rank_.size()));
    if (piece.size() == 1) {
      singles_.set(Byte(piece[0]));
    } else {
      starts_.set(Byte(piece[0]) << 8 | Byte(piece[1]));
      lengths_[Byte(piece[0])].push_back(static_cast<uint32_t>(piece.size()));
    }
  }
  for (std::vector<uint32_t>& lengths : lengths_) {
    std::sort(lengths.begin(), lengths.end());
    lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  }
}

std::vector<TokenId> SpecialPieces::Occurring(absl::string_view text) const {
  std::vector<TokenId> found;
  std::vector<bool> seen(rank_.size());
  const auto look_up = [&](absl::string_view piece) {
    const auto rank = rank_.find(vocabulary_.Find(piece));
    if (rank == rank_.end() || seen[rank->second]) return;
    seen[rank->second] = true;
    found.push_back(rank->first);
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t first = Byte(text[i]);
    if (singles_[first]) look_up(text.substr(i, 1));
    if (i + 1 == text.size() || !starts_[first << 8 | Byte(text[i + 1])]) continue;
    for (const uint32_t length : lengths_[first]) {
      if (length > text.size() - i) break;
      look_up(text.substr(i, length));
    }
  }
  std::sort(found.begin(), found.end(),
            [this](TokenId a, TokenId b) { return rank_.at(a) < rank_.at(b); });
  return found;
}

}  // namespace fedge
