// Finds which special tokens a text spells, in one pass however many of them there are (gemma has
// six thousand).
#ifndef FEDGE_COMMON_MODEL_SPECIAL_PIECES_H_
#define FEDGE_COMMON_MODEL_SPECIAL_PIECES_H_

#include <bitset>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "common/model/vocabulary.h"

namespace fedge {

// Immutable and thread-safe.
class SpecialPieces {
 public:
  // Keeps a pointer to `vocabulary`, which must outlive this and stay where it is.
  explicit SpecialPieces(const Vocabulary& vocabulary);
  SpecialPieces(const SpecialPieces&) = delete;
  SpecialPieces& operator=(const SpecialPieces&) = delete;

  // The tokens of vocabulary.special whose pieces occur in `text`, in the order of
  // vocabulary.special (longest first).
  std::vector<TokenId> Occurring(absl::string_view text) const;

 private:
  const Vocabulary& vocabulary_;
  std::bitset<65536> starts_;                    // of the first two bytes of a piece
  std::bitset<256> singles_;                     // pieces of one byte
  std::vector<std::vector<uint32_t>> lengths_;   // of pieces, by first byte; ascending
  absl::flat_hash_map<TokenId, uint32_t> rank_;  // place in vocabulary.special
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_SPECIAL_PIECES_H_
