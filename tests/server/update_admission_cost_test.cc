// What a hostile update costs before it is refused: memory asked for, counted in this program's own
// operator new.
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>

#include "common/codec/update_header.h"
#include "server/update_admission.h"
#include "tests/server/tiny_run.h"

namespace {

thread_local uint64_t allocated_bytes = 0;

void* CountedAllocation(std::size_t size) {
  allocated_bytes += size;
  if (void* const memory = std::malloc(size > 0 ? size : 1)) return memory;
  std::abort();
}

}  // namespace

void* operator new(std::size_t size) { return CountedAllocation(size); }
void* operator new[](std::size_t size) { return CountedAllocation(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace fedge {
namespace {

// Messages, the header, the slice of the run: nothing that an update could make larger.
constexpr uint64_t kFixedCost = 8192;

RunPlan LargePlan() {
  RunPlan plan = testing::TinyPlan();
  plan.lora = LoraSpec::Create("llama", 4,
                               {{.tensor = "blk.0.attn_q.weight",
                                 .in_features = 8192,
                                 .out_features = 8192,
                                 .rank = 16}})
                  .value();
  plan.max_update_bytes = 1 << 20;
  return plan;
}

uint64_t CostOf(const RunPlan& plan, const std::string& bytes) {
  const uint64_t before = allocated_bytes;
  const absl::StatusOr<AdmittedUpdate> update = AdmitUpdate(plan, 1, 0, bytes);
  const uint64_t cost = allocated_bytes - before;
  EXPECT_FALSE(update.ok());
  return cost;
}

TEST(UpdateAdmissionCostTest, ClaimsWithoutBytesCostNoMemory) {
  RunPlan plan = LargePlan();
  const auto parameters = static_cast<uint64_t>(plan.lora.num_parameters());
  for (const UpdateSupport support :
       {UpdateSupport::kDense, UpdateSupport::kTopK, UpdateSupport::kSeeded}) {
    for (const int bits : {1, 2, 8, 16}) {
      plan.codec = {.support = support, .density = 0.01, .value_bits = bits};
      std::string bytes = testing::MakeUpdate(plan, {});
      UpdateHeader header = *ReadUpdateHeader(bytes);
      bytes.resize(kUpdateHeaderBytes + 64);
      if (support != UpdateSupport::kDense) header.num_nonzero = parameters;
      SealUpdate(header, &bytes);
      EXPECT_LE(CostOf(plan, bytes), bytes.size() + kFixedCost)
          << UpdateSupportName(support) << ", " << bits << " bits";
      for (const uint64_t count : {parameters + 1, uint64_t{1} << 40, ~uint64_t{0}}) {
        header.num_nonzero = count;
        SealUpdate(header, &bytes);
        EXPECT_LE(CostOf(plan, bytes), bytes.size() + kFixedCost) << count;
      }
    }
  }
}

TEST(UpdateAdmissionCostTest, WhatTheHeaderRefusesIsNotDecoded) {
  const RunPlan plan = LargePlan();
  const std::string other_round = testing::MakeUpdate(plan, {.round = 7});
  const std::string other_version = testing::MakeUpdate(plan, {.base_version = 3});
  const std::string no_examples = testing::MakeUpdate(plan, {.num_examples = 0});
  const std::string other_slice =
      testing::MakeUpdate(plan, {.slice = AdapterSlice{SliceFactors::kB, 0, 3}});
  ASSERT_GT(other_round.size(), 10 * kFixedCost);
  for (const std::string& bytes : {other_round, other_version, no_examples, other_slice}) {
    EXPECT_LE(CostOf(plan, bytes), kFixedCost);
  }
  EXPECT_LE(CostOf(plan, std::string(2 << 20, 'x')), kFixedCost);
}

// A value that is not a number is found while decoding: the values so far were read into memory.
TEST(UpdateAdmissionCostTest, ABrokenBodyCostsAFewTimesItsSize) {
  const RunPlan plan = LargePlan();
  std::string bytes = testing::MakeUpdate(plan, {});
  const UpdateHeader header = *ReadUpdateHeader(bytes);
  bytes[bytes.size() - 1] = 0x7E;
  bytes[bytes.size() - 2] = 0x00;
  SealUpdate(header, &bytes);
  EXPECT_LE(CostOf(plan, bytes), 3 * bytes.size() + kFixedCost);
}

}  // namespace
}  // namespace fedge
