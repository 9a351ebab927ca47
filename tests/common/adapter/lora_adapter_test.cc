#include "common/adapter/lora_adapter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace fedge {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

LoraModule Module(std::string tensor, int64_t in, int64_t out, int64_t rank) {
  return {.tensor = std::move(tensor), .in_features = in, .out_features = out, .rank = rank};
}

std::vector<LoraModule> TwoModules() {
  return {Module("blk.0.attn_q.weight", 6, 4, 2), Module("blk.0.ffn_up.weight", 3, 5, 3)};
}

LoraSpec Spec(std::vector<LoraModule> modules, float alpha = 8, std::string arch = "llama") {
  auto spec = LoraSpec::Create(std::move(arch), alpha, std::move(modules));
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *std::move(spec) : LoraSpec();
}

TEST(LoraSpecTest, LaysModulesOutInOrder) {
  const LoraSpec spec = Spec(TwoModules());
  EXPECT_EQ(spec.num_parameters(), 2 * (6 + 4) + 3 * (3 + 5));
  EXPECT_EQ(spec.modules()[0].offset, 0);
  EXPECT_EQ(spec.modules()[1].offset, 20);
  EXPECT_EQ(spec.architecture(), "llama");
  EXPECT_EQ(spec.scale(spec.modules()[0]), 4.0f);
  EXPECT_EQ(spec.scale(spec.modules()[1]), 8.0f / 3.0f);
}

TEST(LoraSpecTest, FindsTensorsByName) {
  const LoraSpec spec = Spec({Module("c", 1, 1, 1), Module("a", 1, 1, 1), Module("b", 1, 1, 1)});
  EXPECT_EQ(spec.Find("c"), 0);
  EXPECT_EQ(spec.Find("a"), 1);
  EXPECT_EQ(spec.Find("b"), 2);
  EXPECT_EQ(spec.Find(""), -1);
  EXPECT_EQ(spec.Find("aa"), -1);
  EXPECT_EQ(spec.Find("d"), -1);
  EXPECT_EQ(LoraSpec().Find("a"), -1);
}

TEST(LoraSpecTest, HashesEverythingThatMakesUpdatesAddable) {
  const LoraSpec spec = Spec(TwoModules());
  // Pinned: devices and servers of different builds must agree.
  EXPECT_EQ(spec.layout_hash().Hex(),
            "578947f73cbd7372b7b83a4c4709321dbf9b42d0d3017e5ea5843e5d6f704275");
  EXPECT_EQ(Spec(TwoModules()).layout_hash(), spec.layout_hash());
  std::vector<std::vector<LoraModule>> others(5, TwoModules());
  others[0][0].rank = 3;
  others[1][1].in_features = 4;
  others[2][1].out_features = 4;
  others[3][0].tensor = "blk.1.attn_q.weight";
  std::swap(others[4][0], others[4][1]);
  for (const auto& modules : others) EXPECT_NE(Spec(modules).layout_hash(), spec.layout_hash());
  EXPECT_NE(Spec(TwoModules(), 9).layout_hash(), spec.layout_hash());
  EXPECT_NE(Spec(TwoModules(), 8, "qwen2").layout_hash(), spec.layout_hash());
}

TEST(LoraSpecTest, RefusesWhatIsOutOfBounds) {
  const auto code = [](std::vector<LoraModule> modules, float alpha = 8) {
    return LoraSpec::Create("llama", alpha, std::move(modules)).status().code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code({}), kInvalid);
  EXPECT_EQ(code({Module("", 1, 1, 1)}), kInvalid);
  EXPECT_EQ(code({Module(std::string(257, 'x'), 1, 1, 1)}), kInvalid);
  for (const int64_t rank : {int64_t{0}, int64_t{-1}, kMaxLoraRank + 1}) {
    EXPECT_EQ(code({Module("x", 8, 8, rank)}), kInvalid);
  }
  EXPECT_EQ(code({Module("x", 8, 8, kMaxLoraRank)}), absl::StatusCode::kOk);
  const int64_t largest = std::numeric_limits<int64_t>::max();
  for (const int64_t features : {int64_t{0}, int64_t{-5}, (int64_t{1} << 24) + 1, largest}) {
    EXPECT_EQ(code({Module("x", features, 8, 1)}), kInvalid);
    EXPECT_EQ(code({Module("x", 8, features, 1)}), kInvalid);
  }
  for (const float alpha : {0.0f, -1.0f, std::nanf(""), INFINITY}) {
    EXPECT_EQ(code(TwoModules(), alpha), kInvalid);
  }
  EXPECT_EQ(LoraSpec::Create("", 8, TwoModules()).status().code(), kInvalid);
  EXPECT_EQ(code(std::vector<LoraModule>(kMaxLoraModules + 1, Module("x", 1, 1, 1))), kInvalid);
}

TEST(LoraSpecTest, RefusesTheSameTensorTwice) {
  const auto spec = LoraSpec::Create(
      "llama", 8, {Module("x", 1, 1, 1), Module("y", 1, 1, 1), Module("x", 2, 2, 1)});
  EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(spec.status().message(), "tensor x is adapted twice");
}

TEST(LoraSpecTest, RefusesMoreParametersThanTheLimit) {
  const int64_t features = int64_t{1} << 20;
  EXPECT_TRUE(LoraSpec::Create("llama", 8, {Module("x", features, features, 1024)}).ok());
  const auto spec =
      LoraSpec::Create("llama", 8, {Module("x", features, features, 1024), Module("y", 1, 1, 1)});
  EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(spec.status().message()),
              HasSubstr("tensor y: the adapter grows over 2147483648 parameters"));
}

LoraModule Part(std::string tensor, int64_t first, int64_t rows, int64_t of, int64_t rank = 2) {
  LoraModule module = Module(std::move(tensor), 6, rows, rank);
  module.first_row = first;
  module.tensor_rows = of;
  return module;
}

TEST(LoraSpecTest, FindsPartsByTheirFirstRow) {
  const LoraSpec spec = Spec({Part("x", 4, 2, 9), Part("x", 0, 3, 9), Module("y", 6, 9, 2)});
  EXPECT_EQ(spec.FindPart("x", 4), 0);
  EXPECT_EQ(spec.FindPart("x", 0), 1);
  EXPECT_EQ(spec.FindPart("x", 3), -1);
  EXPECT_EQ(spec.Find("x"), -1);  // nothing is on the whole of it
  EXPECT_EQ(spec.Find("y"), 2);
  EXPECT_EQ(spec.num_parameters(), 2 * (6 + 2) + 2 * (6 + 3) + 2 * (6 + 9));
}

TEST(LoraSpecTest, HashesWhereAPartIs) {
  const LoraSpec spec = Spec({Part("x", 3, 2, 9)});
  // Pinned: devices and servers of different builds must agree.
  EXPECT_EQ(spec.layout_hash().Hex(),
            "a0bda30780bc0a30d2ef5fd406eef05e4ad5e5fa2ebcac7654b7a5daa637b70a");
  EXPECT_NE(Spec({Part("x", 4, 2, 9)}).layout_hash(), spec.layout_hash());
  EXPECT_NE(Spec({Part("x", 3, 2, 10)}).layout_hash(), spec.layout_hash());
  EXPECT_NE(Spec({Module("x", 6, 2, 2)}).layout_hash(), spec.layout_hash());
}

TEST(LoraSpecTest, RefusesPartsThatMeetOrLieOutside) {
  const auto message = [](std::vector<LoraModule> modules) {
    const auto spec = LoraSpec::Create("phi3", 8, std::move(modules));
    EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(spec.status().message());
  };
  const std::string twice = "tensor x is adapted twice";
  EXPECT_EQ(message({Part("x", 0, 3, 9), Part("x", 2, 3, 9)}), twice);
  EXPECT_EQ(message({Part("x", 0, 3, 9), Part("x", 0, 2, 9)}), twice);
  EXPECT_EQ(message({Part("x", 0, 3, 9), Part("x", 4, 3, 10)}), twice);
  EXPECT_EQ(message({Module("x", 6, 9, 2), Part("x", 4, 3, 9)}), twice);
  EXPECT_EQ(message({Part("x", 7, 3, 9)}), "tensor x: 3 rows from 7 on are no part of 9 rows");
  EXPECT_EQ(message({Part("x", -1, 3, 9)}), "tensor x: 3 rows from -1 on are no part of 9 rows");
  EXPECT_EQ(message({Part("x", 0, 9, 9)}), "tensor x: 9 rows from 0 on are no part of 9 rows");
  EXPECT_EQ(message({Part("x", 1, 3, 0)}), "tensor x: 3 rows from 1 on are no part of 0 rows");
  EXPECT_EQ(message({Part("x", 1, 3, -9)}), "tensor x: 3 rows from 1 on are no part of -9 rows");
  const int64_t largest = std::numeric_limits<int64_t>::max();
  EXPECT_THAT(message({Part("x", largest, 3, largest)}), HasSubstr("are no part of"));
  EXPECT_THAT(message({Part("x", largest - 1, 3, 9)}), HasSubstr("are no part of"));
}

TEST(LoraAdapterTest, PartsOfATensorStartApart) {
  LoraAdapter adapter(Spec({Part("x", 0, 3, 9), Part("x", 4, 3, 9)}));
  adapter.InitializeForTraining(1);
  EXPECT_NE(adapter.a(0), adapter.a(1));
}

// scale B A of a module, in the rows of its tensor.
std::vector<std::vector<double>> ChangeOf(const LoraAdapter& adapter, const std::string& tensor,
                                          size_t rows, size_t in) {
  std::vector<std::vector<double>> change(rows, std::vector<double>(in));
  for (size_t i = 0; i < adapter.spec().modules().size(); ++i) {
    const LoraModule& module = adapter.spec().modules()[i];
    if (module.tensor != tensor) continue;
    const double scale = double{adapter.spec().scale(module)};
    const auto out = static_cast<size_t>(module.out_features);
    for (size_t r = 0; r < static_cast<size_t>(module.rank); ++r) {
      for (size_t row = 0; row < out; ++row) {
        for (size_t k = 0; k < in; ++k) {
          change[static_cast<size_t>(module.first_row) + row][k] +=
              scale * double{adapter.b(static_cast<int64_t>(i))[r * out + row]} *
              double{adapter.a(static_cast<int64_t>(i))[r * in + k]};
        }
      }
    }
  }
  return change;
}

TEST(LoraAdapterTest, WithoutPartsChangesTheWeightsAlike) {
  LoraAdapter adapter(Spec(
      {Part("x", 0, 3, 9, 2), Module("y", 6, 4, 3), Part("x", 5, 2, 9, 4), Part("z", 1, 2, 4, 3)}));
  for (size_t i = 0; i < adapter.values().size(); ++i) {
    adapter.values()[i] = std::sin(static_cast<float>(i));
  }
  const auto whole = WithoutParts(adapter);
  ASSERT_TRUE(whole.ok()) << whole.status();
  const std::vector<LoraModule>& modules = whole->spec().modules();
  ASSERT_EQ(modules.size(), 3u);
  const auto expect = [&](size_t i, const char* tensor, int64_t rows, int64_t rank) {
    EXPECT_EQ(modules[i].tensor, tensor);
    EXPECT_EQ(modules[i].out_features, rows);
    EXPECT_EQ(modules[i].rank, rank);
    EXPECT_FALSE(modules[i].is_part());
    const auto want = ChangeOf(adapter, tensor, static_cast<size_t>(rows), 6);
    const auto have = ChangeOf(*whole, tensor, static_cast<size_t>(rows), 6);
    for (size_t row = 0; row < want.size(); ++row) {
      for (size_t k = 0; k < 6; ++k) EXPECT_NEAR(have[row][k], want[row][k], 1e-5);
    }
  };
  expect(0, "x", 9, 6);
  expect(1, "y", 4, 3);
  expect(2, "z", 4, 3);
  EXPECT_THAT(ChangeOf(*whole, "x", 9, 6)[4], Each(0.0));
  EXPECT_EQ(WithoutParts(*whole)->values(), whole->values());
  // Their ranks together may be too large.
  const LoraAdapter large(Spec({Part("x", 0, 3, 9, 1000), Part("x", 4, 3, 9, 25)}));
  const absl::Status status = WithoutParts(large).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tensor x: rank 1025"));
}

TEST(LoraAdapterTest, ViewsItsBufferByModule) {
  LoraAdapter adapter(Spec(TwoModules()));
  EXPECT_THAT(adapter.values(), Each(0.0f));
  for (size_t i = 0; i < adapter.values().size(); ++i) adapter.values()[i] = static_cast<float>(i);
  EXPECT_EQ(adapter.a(0).size(), 12u);
  EXPECT_EQ(adapter.b(0).size(), 8u);
  EXPECT_EQ(adapter.a(0)[0], 0.0f);
  EXPECT_EQ(adapter.b(0)[0], 12.0f);
  EXPECT_EQ(adapter.a(1)[0], 20.0f);
  const LoraAdapter& view = adapter;
  EXPECT_THAT(view.b(1).subspan(10), ElementsAre(39, 40, 41, 42, 43));
  EXPECT_EQ(view.a(1).data(), adapter.a(1).data());
  // Copies are deep.
  const LoraAdapter copy = adapter;
  adapter.values()[0] = -1;
  EXPECT_EQ(copy.values()[0], 0.0f);
}

TEST(LoraAdapterTest, StartsWithUniformAAndZeroB) {
  LoraAdapter adapter(Spec({Module("x", 400, 50, 16), Module("y", 25, 50, 16)}));
  adapter.InitializeForTraining(1);
  for (const int64_t module : {0, 1}) {
    EXPECT_THAT(adapter.b(module), Each(0.0f));
    const double bound =
        1 / std::sqrt(static_cast<double>(
                adapter.spec().modules()[static_cast<size_t>(module)].in_features));
    double largest = 0;
    double sum = 0;
    double squares = 0;
    for (const float value : adapter.a(module)) {
      largest = std::max(largest, std::abs(static_cast<double>(value)));
      sum += value;
      squares += static_cast<double>(value) * value;
    }
    const double count = static_cast<double>(adapter.a(module).size());
    EXPECT_LE(largest, bound);
    EXPECT_GT(largest, 0.97 * bound);
    EXPECT_NEAR(sum / count, 0, 0.08 * bound);
    EXPECT_NEAR(squares / count, bound * bound / 3, 0.03 * bound * bound);
  }
}

TEST(LoraAdapterTest, GivesATensorTheSameStartInAnyAdapter) {
  LoraAdapter first(Spec({Module("x", 8, 4, 2), Module("y", 6, 4, 2)}));
  LoraAdapter second(Spec({Module("z", 3, 3, 1), Module("y", 6, 4, 2), Module("x", 8, 4, 2)}));
  first.InitializeForTraining(7);
  second.InitializeForTraining(7);
  EXPECT_EQ(first.a(0), second.a(2));
  EXPECT_EQ(first.a(1), second.a(1));
  EXPECT_NE(first.a(0)[0], first.a(1)[0]);
  const float before = first.a(0)[0];
  first.b(0)[0] = 5;
  first.InitializeForTraining(8);
  EXPECT_NE(first.a(0)[0], before);
  EXPECT_EQ(first.b(0)[0], 0.0f);  // a restart forgets what was trained
}

}  // namespace
}  // namespace fedge
