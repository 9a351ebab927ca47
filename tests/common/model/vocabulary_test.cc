// Vocabularies that lie: each gets one error that names file and key, none gets memory or a crash.
#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/model/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/tiny_vocabulary.h"

namespace fedge {
namespace {

using ::fedge::testing::TinyBpe;
using ::fedge::testing::TinySpm;
using ::fedge::testing::TinyVocabulary;

void ExpectError(const TinyVocabulary& vocabulary, absl::StatusCode code,
                 absl::string_view message) {
  const auto tokenizer = vocabulary.Load();
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(tokenizer.status().code(), code);
  EXPECT_EQ(tokenizer.status().message(), message);
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST(VocabularyTest, LoadsTheSoundOnes) {
  EXPECT_TRUE(TinySpm().Load().ok());
  EXPECT_TRUE(TinyBpe().Load().ok());
}

TEST(VocabularyTest, RejectsUnknownModel) {
  TinyVocabulary v = TinySpm();
  v.model = "bert";
  ExpectError(v, absl::StatusCode::kUnimplemented,
              "tiny.gguf: tokenizer model \"bert\" is not supported; supported are llama and gpt2");
}

TEST(VocabularyTest, RejectsUnknownPreTokenizer) {
  TinyVocabulary v = TinyBpe();
  v.pre = "tekken";
  ExpectError(v, absl::StatusCode::kUnimplemented,
              "tiny.gguf: pre-tokenizer \"tekken\" is not supported; supported are llama-bpe, "
              "qwen2, gpt-4o, gpt-2, smollm and default");
}

TEST(VocabularyTest, RejectsAFileWithoutTokens) {
  TinyVocabulary v = TinySpm();
  v.pieces.clear();
  ExpectError(
      v, absl::StatusCode::kNotFound,
      "tiny.gguf: no tokenizer.ggml.tokens: the file holds no vocabulary; convert the model "
      "again with its tokenizer");
}

TEST(VocabularyTest, RejectsTypesOfAnotherLength) {
  TinyVocabulary v = TinySpm();
  v.types->pop_back();
  ExpectError(v, kInvalid, "tiny.gguf: tokenizer.ggml.token_type: 287 types for 288 tokens");
}

TEST(VocabularyTest, RejectsScoresOfAnotherLength) {
  TinyVocabulary v = TinySpm();
  v.scores->push_back(0);
  ExpectError(v, kInvalid, "tiny.gguf: tokenizer.ggml.scores: 289 scores for 288 tokens");
}

TEST(VocabularyTest, RejectsScoreThatIsNotANumber) {
  TinyVocabulary v = TinySpm();
  v.scores->at(260) = std::numeric_limits<float>::quiet_NaN();
  ExpectError(v, kInvalid,
              "tiny.gguf: tokenizer.ggml.scores: the score of token 260 is not a number");
}

TEST(VocabularyTest, RejectsTypeOutOfRange) {
  for (const int32_t type : {0, 7, -1}) {
    TinyVocabulary v = TinySpm();
    v.types->at(5) = type;
    ExpectError(v, kInvalid,
                absl::StrCat("tiny.gguf: tokenizer.ggml.token_type: token 5 has type ", type,
                             ", not 1 to 6"));
  }
}

// llama.cpp's PLaMo-2 reader took "<0x-1>" for the index -1.
TEST(VocabularyTest, RejectsByteTokenThatNamesNoByte) {
  for (const char* piece : {"<0x-1>", "<0x100>", "<0xG0>", "<0x1>", "byte", ""}) {
    TinyVocabulary v = TinySpm();
    v.pieces[10] = piece;
    ExpectError(v, kInvalid,
                absl::StrCat("tiny.gguf: tokenizer.ggml.tokens: byte token 10 is named \"", piece,
                             "\", not <0x00> to <0xFF>"));
  }
}

// CVE-2025-49847: a length beyond int32 after a cast.
TEST(VocabularyTest, RejectsOverlongPiece) {
  TinyVocabulary v = TinySpm();
  v.pieces[270] = std::string(kMaxPieceBytes + 1, 'x');
  ExpectError(v, kInvalid,
              "tiny.gguf: tokenizer.ggml.tokens: token 270 has 65537 bytes, more than the limit "
              "65536");
}

TEST(VocabularyTest, TakesALongPieceWithinTheLimit) {
  TinyVocabulary v = TinySpm();
  v.pieces[270] = std::string(kMaxPieceBytes, 'x');
  const auto tokenizer = v.Load();
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->TokenBytes(270).size(), kMaxPieceBytes);
}

TEST(VocabularyTest, RejectsPieceTwice) {
  TinyVocabulary v = TinySpm();
  v.pieces[270] = "on";
  ExpectError(v, kInvalid, "tiny.gguf: tokenizer.ggml.tokens: tokens 264 and 270 are the same");
}

TEST(VocabularyTest, TakesEmptyPieces) {
  TinyVocabulary v = TinySpm();
  const TokenId first = v.Add("");
  v.Add("");
  const auto tokenizer = v.Load();
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Find(""), kNoToken);
  EXPECT_EQ((*tokenizer)->TokenBytes(first), "");
}

TEST(VocabularyTest, RejectsSpecialIdsOutOfRange) {
  TinyVocabulary v = TinySpm();
  v.bos = 288;
  ExpectError(v, kInvalid,
              "tiny.gguf: tokenizer.ggml.bos_token_id: id 288 in a vocabulary of 288 tokens");
  v = TinySpm();
  v.eos = 0xFFFFFFFFu;
  ExpectError(
      v, kInvalid,
      "tiny.gguf: tokenizer.ggml.eos_token_id: id 4294967295 in a vocabulary of 288 tokens");
  v = TinySpm();
  v.unknown = 1u << 31;
  ExpectError(v, kInvalid,
              "tiny.gguf: tokenizer.ggml.unknown_token_id: id 2147483648 in a vocabulary of 288 "
              "tokens");
  v = TinySpm();
  v.extra = [](GgufWriter& writer) { writer.SetUint32("tokenizer.ggml.eot_token_id", 300); };
  ExpectError(v, kInvalid,
              "tiny.gguf: tokenizer.ggml.eot_token_id: id 300 in a vocabulary of 288 tokens");
}

TEST(VocabularyTest, RejectsNegativeSpecialId) {
  TinyVocabulary v = TinySpm();
  v.extra = [](GgufWriter& writer) { writer.SetInt32("tokenizer.ggml.bos_token_id", -1); };
  const auto tokenizer = v.Load();
  EXPECT_EQ(tokenizer.status().code(), kInvalid);
  EXPECT_THAT(std::string(tokenizer.status().message()),
              ::testing::StartsWith("tiny.gguf: tokenizer.ggml.bos_token_id: "));
}

TEST(VocabularyTest, RejectsAddingABosThatIsMissing) {
  TinyVocabulary v = TinyBpe();
  v.add_bos = true;
  ExpectError(v, kInvalid,
              "tiny.gguf: tokenizer.ggml.add_bos_token: true, but tokenizer.ggml.bos_token_id is "
              "missing");
  v = TinyBpe();
  v.eos.reset();
  v.add_eos = true;
  ExpectError(v, kInvalid,
              "tiny.gguf: tokenizer.ggml.add_eos_token: true, but tokenizer.ggml.eos_token_id is "
              "missing");
}

// Array element types confused: strings where numbers belong and the reverse.
TEST(VocabularyTest, RejectsArraysOfAnotherElementType) {
  const auto code = [](const TinyVocabulary& v) { return v.Load().status().code(); };
  TinyVocabulary v = TinySpm();
  v.scores.reset();
  v.extra = [](GgufWriter& w) {
    w.SetStrings("tokenizer.ggml.scores", std::vector<std::string>(288, "1"));
  };
  EXPECT_EQ(code(v), kInvalid);
  v = TinySpm();
  v.types.reset();
  v.extra = [](GgufWriter& w) {
    w.SetFloat32s("tokenizer.ggml.token_type", std::vector<float>(288, 1.0f));
  };
  EXPECT_EQ(code(v), kInvalid);
  v = TinySpm();
  v.pieces.clear();
  v.extra = [](GgufWriter& w) {
    w.SetInt32s("tokenizer.ggml.tokens", std::vector<int32_t>(288, 1));
  };
  EXPECT_EQ(code(v), kInvalid);
  v = TinyBpe();
  v.merges.reset();
  v.extra = [](GgufWriter& w) { w.SetInt32s("tokenizer.ggml.merges", std::vector<int32_t>(3, 1)); };
  EXPECT_EQ(code(v), kInvalid);
  v = TinySpm();
  v.pieces.clear();
  v.extra = [](GgufWriter& w) { w.SetString("tokenizer.ggml.tokens", "abc"); };
  EXPECT_EQ(code(v), kInvalid);
  v = TinySpm();
  v.extra = [](GgufWriter& w) { w.SetString("tokenizer.ggml.add_bos_token", "yes"); };
  EXPECT_EQ(code(v), kInvalid);
}

TEST(VocabularyTest, RejectsMissingMerges) {
  TinyVocabulary v = TinyBpe();
  v.merges.reset();
  ExpectError(v, kInvalid,
              "tiny.gguf: no tokenizer.ggml.merges: a gpt2 vocabulary cannot be used without its "
              "merges");
}

TEST(VocabularyTest, RejectsMergesOfUnknownPieces) {
  const auto with = [](const std::string& merge) {
    TinyVocabulary v = TinyBpe();
    v.merges->push_back(merge);
    return v;
  };
  ExpectError(with("zz h"), kInvalid,
              "tiny.gguf: tokenizer.ggml.merges: merge 8 \"zz h\": the left piece is no token");
  ExpectError(with("h zz"), kInvalid,
              "tiny.gguf: tokenizer.ggml.merges: merge 8 \"h zz\": the right piece is no token");
  ExpectError(with("a b"), kInvalid,
              "tiny.gguf: tokenizer.ggml.merges: merge 8 \"a b\": the merged piece is no token");
}

TEST(VocabularyTest, RejectsMergesThatAreNoPair) {
  for (const char* merge : {"", " ", "ab", "a ", " a"}) {
    TinyVocabulary v = TinyBpe();
    v.merges->insert(v.merges->begin() + 2, merge);
    ExpectError(v, kInvalid,
                absl::StrCat("tiny.gguf: tokenizer.ggml.merges: merge 2 \"", merge,
                             "\": not two pieces with a space between"));
  }
}

TEST(VocabularyTest, TakesSpecialTokensFromTheirNames) {
  TinyVocabulary v = TinyBpe({"<|im_start|>", "<|endoftext|>"});
  const TokenId end = v.Add("<|im_end|>", TokenType::kNormal);
  const auto tokenizer = v.Load();
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_TRUE((*tokenizer)->IsEndOfGeneration(end));
  EXPECT_TRUE((*tokenizer)->IsEndOfGeneration((*tokenizer)->Find("<|endoftext|>")));
  EXPECT_FALSE((*tokenizer)->IsEndOfGeneration((*tokenizer)->Find("<|im_start|>")));
  EXPECT_FALSE((*tokenizer)->IsEndOfGeneration(kNoToken));
  EXPECT_EQ((*tokenizer)->TokenBytes(end), "");  // a control token, whatever its type said
  EXPECT_EQ((*tokenizer)->TokenBytes(end, true), "<|im_end|>");
}

// Bytes of a sound file changed at random: an error, or a tokenizer that works; never a crash.
TEST(VocabularyTest, DamagedFilesNeverCrash) {
  Rng rng(11);
  TinyVocabulary llama_bpe = TinyBpe({"<|im_start|>", "<|im_end|>"});
  llama_bpe.pre = "llama-bpe";
  int loaded = 0;
  for (const TinyVocabulary& sound : {TinySpm(), TinyBpe(), llama_bpe}) {
    const std::string bytes = sound.Bytes();
    for (int i = 0; i < 3000; ++i) {
      std::string damaged = bytes;
      for (uint64_t k = rng.Below(4) + 1; k > 0; --k) {
        damaged[rng.Below(damaged.size())] =
            rng.Below(2) == 0 ? static_cast<char>(rng.Below(256)) : static_cast<char>(rng.Below(8));
      }
      const auto file = GgufFile::Parse(damaged, "damaged.gguf");
      if (!file.ok()) continue;
      const auto tokenizer = Tokenizer::FromGguf(**file);
      if (!tokenizer.ok()) {
        EXPECT_NE(tokenizer.status().message(), "");
        continue;
      }
      ++loaded;
      for (const bool parse_special : {false, true}) {
        const auto ids =
            (*tokenizer)->Encode("the python\n<|im_end|>\xff 12</s>", {true, parse_special, false});
        for (const TokenId id : ids) {
          EXPECT_GE(id, 0);
          EXPECT_LT(id, (*tokenizer)->vocab_size());
        }
        (*tokenizer)->Decode(ids, true);
      }
    }
  }
  EXPECT_GT(loaded, 300);  // enough of them get as far as encoding
}

}  // namespace
}  // namespace fedge
