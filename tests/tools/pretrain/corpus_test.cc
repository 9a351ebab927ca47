#include "tools/pretrain/corpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "common/formats/gguf.h"
#include "tests/testing/tiny_model.h"
#include "tests/tools/pretrain/tiny_corpus.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(SplitDocumentsTest, SplitsAtFormFeedLinesOnly) {
  EXPECT_THAT(SplitDocuments("\none\ntwo\n\f\n\fthree\n\f\r\nfour\f\n"),
              ElementsAre("one\ntwo", "\fthree", "four\f"));
}

TEST(SplitDocumentsTest, DropsEmptyDocuments) {
  EXPECT_THAT(SplitDocuments(""), IsEmpty());
  EXPECT_THAT(SplitDocuments("\f\n\n\f\n"), IsEmpty());
  EXPECT_THAT(SplitDocuments("a\n\f"), ElementsAre("a"));
}

class TokenCorpusTest : public ::testing::Test {
 protected:
  void SetUp() override {
    gguf_ = testing::MakeTinyModelGguf({});
    tokenizer_ = Tokenizer::FromGguf(**GgufFile::Parse(gguf_, "tiny")).value();
    path_ = ::testing::TempDir() + "/token_corpus.txt";
    ASSERT_TRUE(Env::Posix()->WriteFileAtomic(path_, testing::SyntheticText(20000, 5)).ok());
  }
  absl::StatusOr<TokenCorpus> Read(const CorpusOptions& options, int threads = 1) {
    ThreadPool pool(threads);
    return TokenCorpus::Read({path_}, *tokenizer_, options, pool, *Env::Posix());
  }

  std::string gguf_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string path_;
};

TEST_F(TokenCorpusTest, BeginsEveryWindowWithBosAndNeverPredictsIt) {
  CorpusOptions options;
  options.length = 32;
  const absl::StatusOr<TokenCorpus> corpus = Read(options);
  ASSERT_TRUE(corpus.ok()) << corpus.status();
  const Batch batch = corpus->TrainingBatch(3, 8);
  ASSERT_EQ(batch.tokens.size(), 8u * 32u);
  ASSERT_EQ(batch.targets.size(), 8u * 32u);
  for (size_t row = 0; row < 8; ++row) EXPECT_EQ(batch.tokens[row * 32], tokenizer_->bos());
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    EXPECT_NE(batch.targets[i], tokenizer_->bos());
    if (i % 32 > 0 && i % 32 < 31 && batch.targets[i] != kNoToken) {
      EXPECT_EQ(batch.targets[i], batch.tokens[i + 1]);
    }
  }
}

TEST_F(TokenCorpusTest, DrawsWindowsAsAFunctionOfSeedAndStep) {
  CorpusOptions options;
  options.length = 32;
  options.seed = 9;
  const TokenCorpus one = Read(options, 1).value();
  const TokenCorpus two = Read(options, 2).value();
  EXPECT_EQ(one.digest(), two.digest());
  EXPECT_EQ(one.TrainingBatch(7, 4).tokens, two.TrainingBatch(7, 4).tokens);
  EXPECT_NE(one.TrainingBatch(7, 4).tokens, one.TrainingBatch(8, 4).tokens);
}

TEST_F(TokenCorpusTest, HoldsOutWholeWindowsOutsideTheTrainingPart) {
  CorpusOptions options;
  options.length = 32;
  options.holdout_fraction = 0.25;
  options.max_holdout_windows = 10;
  const TokenCorpus corpus = Read(options).value();
  EXPECT_LT(corpus.num_training_tokens(), corpus.num_tokens());
  EXPECT_GT(corpus.num_training_tokens(), corpus.num_tokens() / 2);
  int64_t rows = 0;
  for (const Batch& batch : corpus.HoldoutBatches(4)) {
    EXPECT_LE(batch.batch_size, 4);
    rows += batch.batch_size;
  }
  EXPECT_EQ(rows, 10);
}

TEST_F(TokenCorpusTest, RejectsATextShorterThanAWindow) {
  CorpusOptions options;
  options.length = 1 << 20;
  EXPECT_EQ(Read(options).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(TokenCorpusTest, NamesAMissingFile) {
  path_ = ::testing::TempDir() + "/no_such_corpus.txt";
  const absl::Status status = Read({}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("no_such_corpus.txt"));
}

}  // namespace
}  // namespace fedge
