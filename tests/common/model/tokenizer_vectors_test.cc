// The conformance vectors of llama.cpp: real vocabularies, exact ids.
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/env.h"
#include "common/formats/gguf.h"
#include "common/model/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/testing/shared_data.h"

namespace fedge {
namespace {

struct VectorCase {
  const char* label;
  const char* file;
};

std::string CaseName(const ::testing::TestParamInfo<VectorCase>& test) { return test.param.label; }

class TokenizerVectorsTest : public ::testing::TestWithParam<VectorCase> {};

std::vector<std::string> ReadTexts(const std::string& path) {
  const auto bytes = Env::Posix()->ReadFile(path);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  std::vector<std::string> texts = absl::StrSplit(*bytes, "\n__ggml_vocab_test__\n");
  if (!texts.empty() && texts.back().empty()) texts.pop_back();  // behind the last separator
  return texts;
}

std::vector<std::vector<TokenId>> ReadIds(const std::string& path) {
  const auto bytes = Env::Posix()->ReadFile(path);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  std::vector<std::string> lines = absl::StrSplit(*bytes, '\n');
  if (!lines.empty() && lines.back().empty()) lines.pop_back();
  std::vector<std::vector<TokenId>> result;
  for (const std::string& line : lines) {
    std::vector<TokenId>& ids = result.emplace_back();
    for (const absl::string_view word : absl::StrSplit(line, ' ', absl::SkipEmpty())) {
      EXPECT_TRUE(absl::SimpleAtoi(word, &ids.emplace_back())) << word;
    }
  }
  return result;
}

TEST_P(TokenizerVectorsTest, EncodesExactlyAndDecodesBack) {
  FEDGE_SHARED_DATA_OR_SKIP(path, absl::StrCat("tokenizer/", GetParam().file));
  const auto file = GgufFile::Open(path, *Env::Posix());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto tokenizer = Tokenizer::FromGguf(**file);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::vector<std::string> texts = ReadTexts(path + ".inp");
  const std::vector<std::vector<TokenId>> expected = ReadIds(path + ".out");
  ASSERT_EQ(texts.size(), expected.size());
  ASSERT_EQ(texts.size(), 46u);
  Tokenizer::EncodeOptions plain;
  plain.add_special = false;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::vector<TokenId> ids = (*tokenizer)->Encode(texts[i], plain);
    EXPECT_EQ(ids, expected[i]) << "text " << i << ": " << texts[i];
    EXPECT_EQ((*tokenizer)->Decode(ids), texts[i]) << "text " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, TokenizerVectorsTest,
                         ::testing::Values(VectorCase{"LlamaSpm", "ggml-vocab-llama-spm.gguf"},
                                           VectorCase{"Gpt2", "ggml-vocab-gpt-2.gguf"},
                                           VectorCase{"LlamaBpe", "llama3.2-vocab.gguf"},
                                           VectorCase{"Qwen2", "qwen2.5-vocab.gguf"}),
                         CaseName);

class RealVocabularyTest : public ::testing::TestWithParam<VectorCase> {};

TEST_P(RealVocabularyTest, RoundTripsAWholeBook) {
  FEDGE_SHARED_DATA_OR_SKIP(path, absl::StrCat("tokenizer/", GetParam().file));
  FEDGE_SHARED_DATA_OR_SKIP(book, "text/tinyshakespeare.txt");
  const auto file = GgufFile::Open(path, *Env::Posix());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto tokenizer = Tokenizer::FromGguf(**file);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto text = Env::Posix()->ReadFile(book);
  ASSERT_TRUE(text.ok()) << text.status();
  const std::vector<TokenId> ids = (*tokenizer)->Encode(*text);
  EXPECT_EQ((*tokenizer)->Decode(ids), *text);
  EXPECT_LT(ids.size(), text->size() / 2);
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, RealVocabularyTest,
                         ::testing::Values(VectorCase{"LlamaSpm", "ggml-vocab-llama-spm.gguf"},
                                           VectorCase{"Gpt2", "ggml-vocab-gpt-2.gguf"},
                                           VectorCase{"LlamaBpe", "llama3.2-vocab.gguf"},
                                           VectorCase{"Qwen2", "qwen2.5-vocab.gguf"}),
                         CaseName);

}  // namespace
}  // namespace fedge
