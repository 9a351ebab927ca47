#include "tools/recipes/sentencepiece_model.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/base/env.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

std::string Varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
  return out;
}

std::string Tag(uint32_t field, uint32_t wire_type) { return Varint(field << 3 | wire_type); }

std::string Bytes(uint32_t field, absl::string_view value) {
  return absl::StrCat(Tag(field, 2), Varint(value.size()), value);
}

std::string Number(uint32_t field, uint64_t value) {
  return absl::StrCat(Tag(field, 0), Varint(value));
}

std::string Float(uint32_t field, float value) {
  std::string raw(4, '\0');
  std::memcpy(raw.data(), &value, 4);
  return absl::StrCat(Tag(field, 5), raw);
}

// A piece as SentencePiece writes it: the type is left out when it is NORMAL.
std::string Piece(absl::string_view text, float score, uint64_t type = 1) {
  return Bytes(1, absl::StrCat(Bytes(1, text), Float(2, score), type == 1 ? "" : Number(3, type)));
}

std::string SmallModel() {
  const std::string trainer =
      absl::StrCat(Bytes(1, "corpus.txt"), Number(3, 2), Float(10, 0.5F), Number(40, 0),
                   Number(41, 1), Number(42, 2), Number(43, ~uint64_t{0}));  // -1, sign-extended
  const std::string normalizer = absl::StrCat(Bytes(1, "identity"), Number(3, 1), Number(4, 0));
  return absl::StrCat(Piece("<unk>", 0, 2), Piece("<s>", 0, 3), Piece("</s>", 0, 3),
                      Piece("<0x0A>", 0, 6), Piece("\u2581the", -1.5F), Piece("sep", 0, 4),
                      Bytes(2, trainer), Bytes(3, normalizer), Bytes(9, "unknown field"));
}

absl::Status ParseStatus(absl::string_view bytes) {
  return ParseSentencePieceModel(bytes).status();
}

TEST(SentencePieceModelTest, ReadsPiecesScoresTypesAndSpecialIds) {
  const auto vocab = ParseSentencePieceModel(SmallModel());
  ASSERT_TRUE(vocab.ok()) << vocab.status();
  ASSERT_EQ(vocab->pieces.size(), 6u);
  EXPECT_EQ(vocab->pieces[0].text, "<unk>");
  EXPECT_EQ(vocab->pieces[0].type, SentencePieceType::kUnknown);
  EXPECT_EQ(vocab->pieces[1].type, SentencePieceType::kControl);
  EXPECT_EQ(vocab->pieces[3].type, SentencePieceType::kByte);
  EXPECT_EQ(vocab->pieces[4].text, "\u2581the");
  EXPECT_EQ(vocab->pieces[4].score, -1.5F);
  EXPECT_EQ(vocab->pieces[4].type, SentencePieceType::kNormal);
  EXPECT_EQ(vocab->pieces[5].type, SentencePieceType::kUserDefined);
  EXPECT_EQ(vocab->model_type, SentencePieceVocab::ModelType::kBpe);
  EXPECT_EQ(vocab->unk_id, 0);
  EXPECT_EQ(vocab->bos_id, 1);
  EXPECT_EQ(vocab->eos_id, 2);
  EXPECT_EQ(vocab->pad_id, -1);
  EXPECT_EQ(vocab->normalizer, "identity");
  EXPECT_TRUE(vocab->add_dummy_prefix);
  EXPECT_FALSE(vocab->remove_extra_whitespaces);
}

TEST(SentencePieceModelTest, AcceptsOrRejectsEveryTruncationWithoutReadingBeyond) {
  const std::string model = SmallModel();
  for (size_t size = 0; size < model.size(); ++size) {
    const std::string cut = model.substr(0, size);  // exact allocation: a sanitizer sees over-reads
    const auto vocab = ParseSentencePieceModel(cut);
    if (vocab.ok()) {
      EXPECT_LE(vocab->pieces.size(), 6u);
    } else {
      EXPECT_EQ(vocab.status().code(), absl::StatusCode::kInvalidArgument);
    }
  }
}

TEST(SentencePieceModelTest, RejectsALengthBeyondTheEnd) {
  EXPECT_EQ(ParseStatus(absl::StrCat(Tag(1, 2), Varint(1000), "abc")).message(),
            "SentencePiece model: byte 3: a field of 1000 bytes where 3 are left");
  EXPECT_THAT(ParseStatus(absl::StrCat(Tag(1, 2), Varint(~uint64_t{0}))).message(),
              HasSubstr("a field of 18446744073709551615 bytes where 0 are left"));
}

TEST(SentencePieceModelTest, RejectsAnEndlessNumber) {
  EXPECT_THAT(ParseStatus(std::string(11, '\xFF')).message(),
              HasSubstr("a number is longer than ten bytes"));
}

TEST(SentencePieceModelTest, RejectsWrongWireTypes) {
  EXPECT_THAT(ParseStatus(Number(1, 5)).message(), HasSubstr("has wire type 0 instead of 2"));
  EXPECT_THAT(ParseStatus(Bytes(1, Number(1, 5))).message(),
              HasSubstr("has wire type 0 instead of 2"));
  EXPECT_THAT(ParseStatus(Tag(1, 3)).message(), HasSubstr("wire type 3 is not supported"));
  EXPECT_THAT(ParseStatus(Tag(0, 0)).message(), HasSubstr("field number out of range"));
}

TEST(SentencePieceModelTest, RejectsPiecesThatNoTokenizerCanUse) {
  EXPECT_THAT(ParseStatus(Bytes(1, Float(2, 1))).message(), HasSubstr("piece 0 is empty"));
  EXPECT_THAT(ParseStatus(Piece("a", 0, 7)).message(), HasSubstr("piece 0 has the unknown type 7"));
  EXPECT_THAT(ParseStatus(Piece("a", std::numeric_limits<float>::quiet_NaN())).message(),
              HasSubstr("the score of piece 0 is not finite"));
  EXPECT_THAT(ParseStatus(Piece(std::string(kMaxSentencePieceBytes + 1, 'a'), 0)).message(),
              HasSubstr("piece 0 has 1025 bytes; the limit is 1024"));
}

TEST(SentencePieceModelTest, RejectsSpecialIdsOutsideTheVocabulary) {
  EXPECT_THAT(ParseStatus(absl::StrCat(Piece("a", 0), Piece("b", 0), Piece("c", 0),
                                       Bytes(2, Number(42, 3))))
                  .message(),
              HasSubstr("special id 3 in a vocabulary of 3"));
  EXPECT_THAT(ParseStatus("").message(), HasSubstr("no pieces: not a SentencePiece model"));
}

TEST(SentencePieceModelTest, ReadsTheModelOfThisRepository) {
  const auto bytes = Env::Posix()->ReadFile(FEDGE_SOURCE_DIR "/models/fedge-tiny/spm.model");
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  const auto vocab = ParseSentencePieceModel(*bytes);
  ASSERT_TRUE(vocab.ok()) << vocab.status();
  ASSERT_EQ(vocab->pieces.size(), 2048u);
  EXPECT_EQ(vocab->model_type, SentencePieceVocab::ModelType::kBpe);
  EXPECT_EQ(vocab->normalizer, "identity");
  EXPECT_EQ(vocab->pieces[3 + 0x0A].text, "<0x0A>");
  EXPECT_EQ(vocab->pieces[3 + 0x0A].type, SentencePieceType::kByte);
  EXPECT_EQ(vocab->pieces[259].text, "\u2581t");
}

}  // namespace
}  // namespace fedge
