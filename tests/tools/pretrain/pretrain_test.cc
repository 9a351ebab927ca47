#include "tools/pretrain/pretrain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/base/thread_pool.h"
#include "common/model/transformer.h"
#include "tests/tools/pretrain/tiny_corpus.h"
#include "tools/pretrain/corpus.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

class PretrainTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = absl::StrCat(::testing::TempDir(), "/pretrain_",
                        ::testing::UnitTest::GetInstance()->current_test_info()->name());
    if (env_.Exists(dir_)) {
      ASSERT_TRUE(env_.Remove(dir_).ok());
    }
    ASSERT_TRUE(env_.CreateDirs(dir_).ok());
    Write("corpus.txt", testing::SyntheticText(20000, 11));
    Write("spm.model", testing::TinySentencePieceModel());
  }
  void Write(absl::string_view name, absl::string_view bytes) {
    ASSERT_TRUE(env_.WriteFileAtomic(JoinPath(dir_, name), bytes).ok());
  }
  std::string Read(absl::string_view name) { return env_.ReadFile(JoinPath(dir_, name)).value(); }

  PretrainOptions Options(absl::string_view output) const {
    PretrainOptions options;
    options.corpus_files = {JoinPath(dir_, "corpus.txt")};
    options.vocabulary_file = JoinPath(dir_, "spm.model");
    options.shape = {32, 2, 4, 2, 64, 64, 10000, 1e-5f};
    options.labels.name = "tiny";
    options.steps = 30;
    options.batch_size = 4;
    options.length = 32;
    options.peak_rate = 1e-2f;
    options.warmup_steps = 5;
    options.holdout_fraction = 0.1;
    options.max_holdout_windows = 8;
    options.output_file = JoinPath(dir_, output);
    return options;
  }
  absl::StatusOr<PretrainResult> Run(const PretrainOptions& options,
                                     const PretrainEvents& events = {}) {
    ManualClock clock;
    return Pretrain(options, events, env_, clock);
  }

  Env& env_ = *Env::Posix();
  std::string dir_;
};

TEST_F(PretrainTest, LowersTheLossAndWritesAModelThatEvaluatesToIt) {
  const absl::StatusOr<PretrainResult> result = Run(Options("q8.gguf"));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_NEAR(result->first_loss, std::log(287.0), 0.2);  // all 287 pieces equally likely at first
  EXPECT_LT(result->holdout_loss, 2.7);
  EXPECT_GT(result->holdout_loss, 1.0);  // the words are drawn at random: some loss must stay
  EXPECT_NEAR(result->output_holdout_loss, result->holdout_loss, 0.02);

  const auto model = BaseModel::Load(JoinPath(dir_, "q8.gguf"), env_);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE((*model)->tied_output());
  EXPECT_EQ((*model)->token_embedding().type, DType::kQ8_0);
  EXPECT_EQ((*model)->config().vocab_size, 287);
  EXPECT_EQ((*model)->file().FindTensor("output_norm.weight")->type, DType::kF32);
  EXPECT_EQ((*model)->file().GetString("general.name").value(), "tiny");
  EXPECT_TRUE((*model)->tokenizer().adds_bos());

  ThreadPool pool(1);
  CorpusOptions corpus_options;
  corpus_options.length = 32;
  corpus_options.holdout_fraction = 0.1;
  corpus_options.max_holdout_windows = 8;
  const TokenCorpus corpus = TokenCorpus::Read({JoinPath(dir_, "corpus.txt")},
                                               (*model)->tokenizer(), corpus_options, pool, env_)
                                 .value();
  Transformer transformer(*model, &pool);
  LossSum sum;
  for (const Batch& batch : corpus.HoldoutBatches(4)) sum += transformer.Loss(batch, nullptr);
  EXPECT_NEAR(sum.mean(), result->output_holdout_loss, 1e-5);
}

TEST_F(PretrainTest, WritesTheSameBytesForTheSameSeedWhateverTheThreads) {
  PretrainOptions options = Options("a.gguf");
  options.steps = 5;
  ASSERT_TRUE(Run(options).ok());
  options.output_file = JoinPath(dir_, "b.gguf");
  options.threads = 2;
  ASSERT_TRUE(Run(options).ok());
  options.output_file = JoinPath(dir_, "c.gguf");
  options.seed = 1;
  ASSERT_TRUE(Run(options).ok());
  EXPECT_EQ(Read("a.gguf"), Read("b.gguf"));
  EXPECT_NE(Read("a.gguf"), Read("c.gguf"));
}

TEST_F(PretrainTest, ContinuesAStoppedRunToTheSameBytes) {
  PretrainOptions options = Options("whole.gguf");
  options.steps = 6;
  ASSERT_TRUE(Run(options).ok());

  options.output_file = JoinPath(dir_, "parts.gguf");
  options.checkpoint_file = JoinPath(dir_, "state");
  PretrainEvents stop;
  stop.on_step = [](const PretrainProgress& progress) { return progress.step < 4; };
  EXPECT_EQ(Run(options, stop).status().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(env_.Exists(options.output_file));
  const absl::StatusOr<PretrainResult> rest = Run(options);
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_EQ(rest->start.resumed_step, 4);
  EXPECT_EQ(Read("whole.gguf"), Read("parts.gguf"));
  EXPECT_FALSE(env_.Exists(options.checkpoint_file));
}

TEST_F(PretrainTest, RefusesTheCheckpointOfAnotherRunAndADamagedOne) {
  PretrainOptions options = Options("x.gguf");
  options.checkpoint_file = JoinPath(dir_, "state");
  PretrainEvents stop;
  stop.on_step = [](const PretrainProgress&) { return false; };
  EXPECT_EQ(Run(options, stop).status().code(), absl::StatusCode::kCancelled);

  PretrainOptions other = options;
  other.peak_rate = 5e-3f;
  EXPECT_EQ(Run(other).status().code(), absl::StatusCode::kFailedPrecondition);

  std::string bytes = Read("state");
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  Write("state", bytes);
  EXPECT_EQ(Run(options).status().code(), absl::StatusCode::kDataLoss);
  Write("state", bytes.substr(0, 1000));
  EXPECT_EQ(Run(options).status().code(), absl::StatusCode::kDataLoss);
  Write("state", "not a checkpoint");
  EXPECT_EQ(Run(options).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(PretrainTest, KeepsMatricesWithOddRowsInFp32) {
  PretrainOptions options = Options("odd.gguf");
  options.steps = 1;
  options.shape.feed_forward_length = 40;
  options.output_type = DType::kQ4_0;
  ASSERT_TRUE(Run(options).ok());
  const auto model = BaseModel::Load(options.output_file, env_).value();
  EXPECT_EQ(model->layers()[0].linear[kDown].type, DType::kF32);
  EXPECT_EQ(model->layers()[0].linear[kUp].type, DType::kQ4_0);
}

TEST_F(PretrainTest, NamesWhatDoesNotFit) {
  PretrainOptions options = Options("x.gguf");
  options.shape.head_count = 5;
  EXPECT_THAT(std::string(Run(options).status().message()), HasSubstr("hidden size 32 over 5"));
  options = Options("x.gguf");
  options.shape.head_count_kv = 3;
  EXPECT_EQ(Run(options).status().code(), absl::StatusCode::kInvalidArgument);
  options = Options("x.gguf");
  options.length = 65;
  EXPECT_THAT(std::string(Run(options).status().message()), HasSubstr("context length 64"));
}

TEST_F(PretrainTest, RefusesVocabulariesThatLlamaCppCannotUse) {
  Write("spm.model", testing::TinySentencePieceModel(1));
  EXPECT_THAT(std::string(Run(Options("x.gguf")).status().message()), HasSubstr("BPE"));
  Write("spm.model", testing::TinySentencePieceModel(2, false));
  EXPECT_THAT(std::string(Run(Options("x.gguf")).status().message()), HasSubstr("byte pieces"));
}

}  // namespace
}  // namespace fedge
