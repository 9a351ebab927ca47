#include "tools/fedge/model_change.h"

#include <gtest/gtest.h>

#include <cmath>

#include "common/base/rng.h"
#include "tests/server/tiny_run.h"

namespace fedge {
namespace {

LoraAdapter Random(uint64_t seed) {
  LoraAdapter adapter(testing::TinySpec());
  Rng rng(seed);
  for (float& value : adapter.values()) value = static_cast<float>(rng.Normal());
  return adapter;
}

// Frobenius norm of scale * B A, element by element.
double ProductNorm(const LoraAdapter& x, const LoraAdapter* y, size_t m) {
  const LoraModule& module = x.spec().modules()[m];
  const auto index = static_cast<int64_t>(m);
  double sum = 0;
  for (int64_t o = 0; o < module.out_features; ++o) {
    for (int64_t i = 0; i < module.in_features; ++i) {
      double value = 0;
      for (int64_t r = 0; r < module.rank; ++r) {
        const auto a = static_cast<size_t>(r * module.in_features + i);
        const auto b = static_cast<size_t>(r * module.out_features + o);
        value += double{x.b(index)[b]} * x.a(index)[a];
        if (y != nullptr) value -= double{y->b(index)[b]} * y->a(index)[a];
      }
      sum += value * value;
    }
  }
  return x.spec().scale(module) * std::sqrt(sum);
}

TEST(ModelChangeTest, NormsAreThoseOfTheProducts) {
  const LoraAdapter before = Random(1);
  const LoraAdapter after = Random(2);
  const std::vector<ModuleChange> changes = CompareAdapters(before, after);
  ASSERT_EQ(changes.size(), 2u);
  for (size_t m = 0; m < changes.size(); ++m) {
    EXPECT_EQ(changes[m].tensor, before.spec().modules()[m].tensor);
    EXPECT_NEAR(changes[m].before, ProductNorm(before, nullptr, m), 1e-5);
    EXPECT_NEAR(changes[m].product, ProductNorm(after, &before, m), 1e-5);
    EXPECT_GT(changes[m].a, 1);
    EXPECT_GT(changes[m].b, 1);
  }
}

TEST(ModelChangeTest, EqualAdaptersDoNotDiffer) {
  for (const ModuleChange& change : CompareAdapters(Random(1), Random(1))) {
    EXPECT_EQ(change.a, 0);
    EXPECT_EQ(change.b, 0);
    EXPECT_NEAR(change.product, 0, 1e-5);
  }
}

}  // namespace
}  // namespace fedge
