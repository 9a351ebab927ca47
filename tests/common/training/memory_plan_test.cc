#include "common/training/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class MemoryPlanTest : public ::testing::Test {
 protected:
  MemoryPlanTest() {
    testing::TinyModelOptions options;
    options.block_count = 6;
    options.embedding_length = 128;
    options.feed_forward_length = 512;
    options.vocab_size = 20'000;
    options.context_length = 512;
    options.dtype = DType::kQ8_0;
    bytes_ = testing::MakeTinyModelGguf(options);
    model_ = BaseModel::FromGguf(GgufFile::Parse(bytes_, "model.gguf").value()).value();
    LoraTargets targets;
    targets.rank = 16;
    spec_ = model_->MakeLoraSpec(targets).value();
    request_.model = model_.get();
    request_.adapter = &spec_;
    request_.batch_size = 8;
    request_.length = 256;
    request_.threads = 2;
  }

  MemoryPlan Plan(int64_t limit_bytes) {
    request_.limit_bytes = limit_bytes;
    return PlanMemory(request_).value();
  }

  std::string bytes_;
  std::shared_ptr<const BaseModel> model_;
  LoraSpec spec_;
  MemoryRequest request_;
};

TEST_F(MemoryPlanTest, WithoutALimitPlansTheDefaults) {
  const MemoryPlan plan = Plan(0);
  EXPECT_EQ(plan.micro_batch, 8);
  EXPECT_EQ(plan.length, 256);
  EXPECT_EQ(plan.rank, 16);
  EXPECT_EQ(plan.moment_bits, 32);
  EXPECT_EQ(plan.estimate.model_file, static_cast<int64_t>(bytes_.size()));
  EXPECT_EQ(plan.estimate.adapter, 8 * spec_.num_parameters());
  EXPECT_EQ(plan.estimate.optimizer, 8 * spec_.num_parameters());
  EXPECT_THAT(plan.Describe(model_->config()),
              HasSubstr("8 rows of 256 tokens in 1 pass, activations of "));
}

TEST_F(MemoryPlanTest, EveryLimitIsKeptOrRefused) {
  int64_t smallest = 0;
  for (int64_t limit = 10'000'000; limit < 120'000'000; limit += 1'000'000) {
    request_.limit_bytes = limit;
    const auto plan = PlanMemory(request_);
    if (!plan.ok()) {
      EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
      EXPECT_EQ(smallest, 0) << "refused " << limit << " after allowing " << smallest;
      continue;
    }
    if (smallest == 0) smallest = limit;
    EXPECT_LE(plan->estimate.total(), limit);
    EXPECT_EQ(plan->length, 256);  // nothing was allowed to shrink
    EXPECT_EQ(plan->rank, 16);
    EXPECT_EQ(plan->moment_bits, 32);
  }
  EXPECT_GT(smallest, 20'000'000);
  EXPECT_LT(smallest, 60'000'000);
}

TEST_F(MemoryPlanTest, MoreMemoryKeepsMoreLayersInFewerPasses) {
  const MemoryPlan little = Plan(40'000'000);
  const MemoryPlan much = Plan(1'000'000'000);
  EXPECT_LT(little.micro_batch, 8);
  EXPECT_EQ(much.micro_batch, 8);
  EXPECT_EQ(much.kept_layers, 6);
  EXPECT_EQ(much.transformer.logit_rows, 384);
}

TEST_F(MemoryPlanTest, ReducesOnlyWhatItMayAndInThatOrder) {
  const auto refused = [&](int64_t limit) {
    request_.limit_bytes = limit;
    return !PlanMemory(request_).ok();
  };
  int64_t limit = 60'000'000;
  while (!refused(limit)) limit -= 200'000;
  request_.may_reduce_optimizer = true;
  EXPECT_EQ(Plan(limit).moment_bits, 8);
  while (!refused(limit)) limit -= 200'000;
  request_.may_reduce_length = true;
  const MemoryPlan shorter = Plan(limit);
  EXPECT_EQ(shorter.moment_bits, 8);
  EXPECT_EQ(shorter.length, 128);
  EXPECT_EQ(shorter.rank, 16);
  while (!refused(limit)) limit -= 200'000;
  request_.may_reduce_rank = true;
  const MemoryPlan thinner = Plan(limit);
  EXPECT_EQ(thinner.length, 32);
  EXPECT_EQ(thinner.rank, 8);
}

TEST_F(MemoryPlanTest, ARefusalNamesTheSmallestPlans) {
  request_.limit_bytes = 5'000'000;
  const absl::Status status = PlanMemory(request_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  const std::string message(status.message());
  EXPECT_THAT(message, StartsWith("a memory limit of 5 MB is too little: the smallest plan, 1 row "
                                  "of 256 tokens in one pass, rank 16, 32-bit optimizer, takes "));
  EXPECT_THAT(message, HasSubstr("with optimizer,length,rank reduced too (rank 4, length 32, "
                                 "8-bit optimizer) "));
}

TEST(ParseByteSizeTest, TakesDecimalAndBinaryUnits) {
  EXPECT_EQ(ParseByteSize("600MB").value(), 600'000'000);
  EXPECT_EQ(ParseByteSize("1.5 GB").value(), 1'500'000'000);
  EXPECT_EQ(ParseByteSize("512mib").value(), int64_t{512} << 20);
  EXPECT_EQ(ParseByteSize("2GiB").value(), int64_t{2} << 30);
  EXPECT_EQ(ParseByteSize("123456").value(), 123456);
  for (const char* const text : {"", "MB", "-1MB", "0", "1e30GB", "12 apples", "nanMB", "1MBs"}) {
    EXPECT_EQ(ParseByteSize(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace fedge
