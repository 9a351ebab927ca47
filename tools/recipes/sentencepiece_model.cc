#include "tools/recipes/sentencepiece_model.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };

// One field of a protobuf message. Of the last three only the one of the wire type means something.
struct WireField {
  uint32_t number = 0;
  uint32_t wire_type = 0;
  uint64_t varint = 0;
  uint32_t fixed32 = 0;
  absl::string_view bytes;
};

absl::Status Broken(size_t offset, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("SentencePiece model: byte ", offset, ": ", what));
}

// Walks over the fields of one message. Every length is checked against what is left.
class WireReader {
 public:
  WireReader(absl::string_view bytes, size_t base_offset) : bytes_(bytes), base_(base_offset) {}

  bool done() const { return position_ == bytes_.size(); }
  size_t offset() const { return base_ + position_; }

  absl::StatusOr<WireField> Next() {
    WireField field;
    ASSIGN_OR_RETURN(const uint64_t tag, Varint());
    if (tag >> 3 == 0 || tag >> 32 != 0) return Broken(offset(), "field number out of range");
    field.number = static_cast<uint32_t>(tag >> 3);
    field.wire_type = static_cast<uint32_t>(tag & 7);
    switch (field.wire_type) {
      case kVarint: {
        ASSIGN_OR_RETURN(field.varint, Varint());
        return field;
      }
      case kFixed64: {
        ASSIGN_OR_RETURN(field.bytes, Bytes(8));
        return field;
      }
      case kLengthDelimited: {
        ASSIGN_OR_RETURN(const uint64_t size, Varint());
        ASSIGN_OR_RETURN(field.bytes, Bytes(size));
        return field;
      }
      case kFixed32: {
        ASSIGN_OR_RETURN(field.bytes, Bytes(4));
        std::memcpy(&field.fixed32, field.bytes.data(), 4);
        return field;
      }
      default:
        return Broken(offset(), absl::StrCat("wire type ", field.wire_type, " is not supported"));
    }
  }

  // Offset in the file of a field's content that Next() just returned.
  size_t ContentOffset(const WireField& field) const { return offset() - field.bytes.size(); }

 private:
  absl::StatusOr<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (done()) return Broken(offset(), "the file ends inside a number");
      const uint8_t byte = static_cast<uint8_t>(bytes_[position_++]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    return Broken(offset(), "a number is longer than ten bytes");
  }

  absl::StatusOr<absl::string_view> Bytes(uint64_t size) {
    const size_t left = bytes_.size() - position_;
    if (size > left) {
      return Broken(offset(),
                    absl::StrCat("a field of ", size, " bytes where ", left, " are left"));
    }
    const absl::string_view result = bytes_.substr(position_, static_cast<size_t>(size));
    position_ += static_cast<size_t>(size);
    return result;
  }

  absl::string_view bytes_;
  size_t base_;
  size_t position_ = 0;
};

absl::Status Expect(const WireField& field, WireType type, size_t offset) {
  if (field.wire_type == type) return absl::OkStatus();
  return Broken(offset, absl::StrCat("field ", field.number, " has wire type ", field.wire_type,
                                     " instead of ", static_cast<uint32_t>(type)));
}

absl::Status CheckPiece(const SentencePiece& piece, size_t id, size_t offset) {
  if (piece.text.empty()) return Broken(offset, absl::StrCat("piece ", id, " is empty"));
  if (!std::isfinite(piece.score)) {
    return Broken(offset, absl::StrCat("the score of piece ", id, " is not finite"));
  }
  return absl::OkStatus();
}

absl::StatusOr<SentencePiece> ParsePiece(absl::string_view bytes, size_t base, size_t id) {
  SentencePiece piece;
  WireReader reader(bytes, base);
  while (!reader.done()) {
    ASSIGN_OR_RETURN(const WireField field, reader.Next());
    if (field.number == 1) {
      RETURN_IF_ERROR(Expect(field, kLengthDelimited, reader.offset()));
      if (field.bytes.size() > kMaxSentencePieceBytes) {
        return Broken(base, absl::StrCat("piece ", id, " has ", field.bytes.size(),
                                         " bytes; the limit is ", kMaxSentencePieceBytes));
      }
      piece.text = std::string(field.bytes);
    } else if (field.number == 2) {
      RETURN_IF_ERROR(Expect(field, kFixed32, reader.offset()));
      std::memcpy(&piece.score, &field.fixed32, sizeof(piece.score));
    } else if (field.number == 3) {
      RETURN_IF_ERROR(Expect(field, kVarint, reader.offset()));
      if (field.varint < 1 || field.varint > 6) {
        return Broken(base, absl::StrCat("piece ", id, " has the unknown type ", field.varint));
      }
      piece.type = static_cast<SentencePieceType>(field.varint);
    }
  }
  RETURN_IF_ERROR(CheckPiece(piece, id, base));
  return piece;
}

absl::Status ParseTrainerSpec(absl::string_view bytes, size_t base, SentencePieceVocab& vocab) {
  WireReader reader(bytes, base);
  while (!reader.done()) {
    ASSIGN_OR_RETURN(const WireField field, reader.Next());
    int32_t* const id = field.number == 40   ? &vocab.unk_id
                        : field.number == 41 ? &vocab.bos_id
                        : field.number == 42 ? &vocab.eos_id
                        : field.number == 43 ? &vocab.pad_id
                                             : nullptr;
    if (id == nullptr && field.number != 3) continue;
    RETURN_IF_ERROR(Expect(field, kVarint, reader.offset()));
    if (id != nullptr) {
      *id = static_cast<int32_t>(static_cast<uint32_t>(field.varint));  // int32: low bits count
      continue;
    }
    if (field.varint < 1 || field.varint > 4) {
      return Broken(reader.offset(), absl::StrCat("unknown model type ", field.varint));
    }
    vocab.model_type = static_cast<SentencePieceVocab::ModelType>(field.varint);
  }
  return absl::OkStatus();
}

absl::Status ParseNormalizerSpec(absl::string_view bytes, size_t base, SentencePieceVocab& vocab) {
  WireReader reader(bytes, base);
  while (!reader.done()) {
    ASSIGN_OR_RETURN(const WireField field, reader.Next());
    if (field.number == 1) {
      RETURN_IF_ERROR(Expect(field, kLengthDelimited, reader.offset()));
      vocab.normalizer = std::string(field.bytes.substr(0, kMaxSentencePieceBytes));
    } else if (field.number == 3 || field.number == 4) {
      RETURN_IF_ERROR(Expect(field, kVarint, reader.offset()));
      (field.number == 3 ? vocab.add_dummy_prefix : vocab.remove_extra_whitespaces) =
          field.varint != 0;
    }
  }
  return absl::OkStatus();
}

absl::Status CheckVocab(const SentencePieceVocab& vocab, size_t end) {
  if (vocab.pieces.empty()) return Broken(end, "no pieces: not a SentencePiece model");
  const auto count = static_cast<int64_t>(vocab.pieces.size());
  for (const int32_t id : {vocab.unk_id, vocab.bos_id, vocab.eos_id, vocab.pad_id}) {
    if (id < -1 || id >= count) {
      return Broken(end, absl::StrCat("special id ", id, " in a vocabulary of ", count));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SentencePieceVocab> ParseSentencePieceModel(absl::string_view bytes) {
  SentencePieceVocab vocab;
  WireReader reader(bytes, 0);
  while (!reader.done()) {
    ASSIGN_OR_RETURN(const WireField field, reader.Next());
    if (field.number < 1 || field.number > 3) continue;
    RETURN_IF_ERROR(Expect(field, kLengthDelimited, reader.offset()));
    const size_t base = reader.ContentOffset(field);
    if (field.number == 2) {
      RETURN_IF_ERROR(ParseTrainerSpec(field.bytes, base, vocab));
    } else if (field.number == 3) {
      RETURN_IF_ERROR(ParseNormalizerSpec(field.bytes, base, vocab));
    } else if (vocab.pieces.size() == kMaxSentencePieces) {
      return Broken(base, absl::StrCat("more than ", kMaxSentencePieces, " pieces"));
    } else {
      ASSIGN_OR_RETURN(SentencePiece piece, ParsePiece(field.bytes, base, vocab.pieces.size()));
      vocab.pieces.push_back(std::move(piece));
    }
  }
  RETURN_IF_ERROR(CheckVocab(vocab, bytes.size()));
  return vocab;
}

}  // namespace fedge
