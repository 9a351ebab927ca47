#include "common/tensor/linear_group.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "common/base/rng.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

using Floats = std::vector<float>;

Floats RandomFloats(int64_t count, uint64_t seed) {
  Rng rng(seed);
  Floats values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.Normal());
  return values;
}

// Layers over one input, with branches of random factors.
struct Case {
  int64_t t, in;
  std::vector<int64_t> outs, ranks, ends;
  bool bias = false;
  float scale = 0.5f;
};

struct Results {
  std::vector<Floats> u, y, da, db;  // of each layer; gradients of all branches in a row
  Floats dx;
};

class Layers {
 public:
  explicit Layers(const Case& c) : s(c), x(RandomFloats(s.t * s.in, 1)) {
    for (size_t i = 0; i < s.outs.size(); ++i) {
      const int64_t branches = static_cast<int64_t>(s.ends.size());
      w.push_back(RandomFloats(s.outs[i] * s.in, 10 + i));
      bias.push_back(RandomFloats(s.outs[i], 20 + i));
      a.push_back(RandomFloats(branches * s.ranks[i] * s.in, 30 + i));
      bt.push_back(RandomFloats(branches * s.ranks[i] * s.outs[i], 40 + i));
      dy.push_back(RandomFloats(s.t * s.outs[i], 50 + i));
    }
  }

  Results Run(Precision precision, int threads) const {
    ThreadPool pool(threads);
    Results r;
    std::vector<std::vector<LoraFactors>> factors(s.outs.size());
    std::vector<std::vector<LoraFactorsGradient>> gradients(s.outs.size());
    std::vector<ForwardLayer> forward(s.outs.size());
    std::vector<BackwardLayer> backward(s.outs.size());
    for (size_t i = 0; i < s.outs.size(); ++i) {
      r.u.emplace_back(static_cast<size_t>(s.t * s.ranks[i]), NAN);
      r.y.emplace_back(static_cast<size_t>(s.t * s.outs[i]), NAN);
      r.da.emplace_back(a[i].size(), 1.0f);
      r.db.emplace_back(bt[i].size(), 1.0f);
    }
    for (size_t i = 0; i < s.outs.size(); ++i) {
      for (size_t b = 0; b < s.ends.size(); ++b) {
        const size_t a_at = b * static_cast<size_t>(s.ranks[i] * s.in);
        const size_t b_at = b * static_cast<size_t>(s.ranks[i] * s.outs[i]);
        factors[i].push_back({a[i].data() + a_at, bt[i].data() + b_at});
        gradients[i].push_back({r.da[i].data() + a_at, r.db[i].data() + b_at});
      }
      const WeightMatrix weight = DenseView(w[i].data(), s.outs[i], s.in);
      const LowRank lora = {s.ranks[i], s.scale, factors[i]};
      forward[i].w = backward[i].w = weight;
      forward[i].bias = s.bias ? bias[i].data() : nullptr;
      forward[i].lora = backward[i].lora = lora;
      forward[i].u = r.u[i].data();
      forward[i].y = r.y[i].data();
      backward[i].gradient = gradients[i];
      backward[i].u = r.u[i].data();
      backward[i].dy = dy[i].data();
    }
    r.dx.assign(static_cast<size_t>(s.t * s.in), NAN);
    ForwardGroup(forward, x.data(), {s.t, s.ends}, precision, Accumulate::kNo, pool);
    BackwardGroup(backward, x.data(), {s.t, s.ends}, precision, Accumulate::kNo, r.dx.data(), pool);
    return r;
  }

  // The definition, in double.
  Results Scalar() const {
    Results r;
    std::vector<double> dx(static_cast<size_t>(s.t * s.in));
    for (size_t i = 0; i < s.outs.size(); ++i) {
      const int64_t out = s.outs[i], rank = s.ranks[i];
      r.u.emplace_back(static_cast<size_t>(s.t * rank));
      r.y.emplace_back(static_cast<size_t>(s.t * out));
      r.da.emplace_back(a[i].size(), 1.0f);
      r.db.emplace_back(bt[i].size(), 1.0f);
      for (int64_t t = 0; t < s.t; ++t) {
        size_t branch = 0;
        while (branch < s.ends.size() && t >= s.ends[branch]) ++branch;
        const float* const at = a[i].data() + branch * static_cast<size_t>(rank * s.in);
        const float* const bt_at = bt[i].data() + branch * static_cast<size_t>(rank * out);
        float* const da = r.da[i].data() + branch * static_cast<size_t>(rank * s.in);
        float* const db = r.db[i].data() + branch * static_cast<size_t>(rank * out);
        const float* const xt = x.data() + t * s.in;
        const float* const dyt = dy[i].data() + t * out;
        std::vector<double> u(static_cast<size_t>(rank)), du(static_cast<size_t>(rank));
        for (int64_t k = 0; k < rank; ++k) {
          const size_t ku = static_cast<size_t>(k);
          for (int64_t c = 0; c < s.in; ++c) u[ku] += double{at[k * s.in + c]} * xt[c];
          for (int64_t n = 0; n < out; ++n) {
            du[ku] += double{s.scale} * dyt[n] * bt_at[k * out + n];
            db[k * out + n] += static_cast<float>(s.scale * u[ku] * dyt[n]);
          }
          r.u[i][static_cast<size_t>(t * rank + k)] = static_cast<float>(u[ku]);
          for (int64_t c = 0; c < s.in; ++c) {
            da[k * s.in + c] += static_cast<float>(du[ku] * xt[c]);
            dx[static_cast<size_t>(t * s.in + c)] += du[ku] * at[k * s.in + c];
          }
        }
        for (int64_t n = 0; n < out; ++n) {
          double sum = s.bias ? bias[i][static_cast<size_t>(n)] : 0;
          for (int64_t c = 0; c < s.in; ++c) {
            const double weight = w[i][static_cast<size_t>(n * s.in + c)];
            sum += weight * xt[c];
            dx[static_cast<size_t>(t * s.in + c)] += weight * dyt[n];
          }
          for (int64_t k = 0; k < rank; ++k) {
            sum += s.scale * u[static_cast<size_t>(k)] * bt_at[k * out + n];
          }
          r.y[i][static_cast<size_t>(t * out + n)] = static_cast<float>(sum);
        }
      }
    }
    r.dx.assign(dx.begin(), dx.end());
    return r;
  }

 private:
  const Case s;
  const Floats x;
  std::vector<Floats> w, bias, a, bt, dy;
};

double Distance(const Floats& got, const Floats& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - want[i];
    error += difference * difference;
    norm += double{want[i]} * want[i];
  }
  return want.empty() ? 0 : std::sqrt(error / norm);
}

void ExpectNear(const Results& got, const Results& want, double tolerance) {
  for (size_t i = 0; i < want.y.size(); ++i) {
    EXPECT_LT(Distance(got.u[i], want.u[i]), tolerance) << "u of " << i;
    EXPECT_LT(Distance(got.y[i], want.y[i]), tolerance) << "y of " << i;
    EXPECT_LT(Distance(got.da[i], want.da[i]), tolerance) << "dA of " << i;
    EXPECT_LT(Distance(got.db[i], want.db[i]), tolerance) << "dB of " << i;
  }
  EXPECT_LT(Distance(got.dx, want.dx), tolerance) << "dx";
}

class LinearGroupTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

const Case kCases[] = {
    {.t = 70, .in = 96, .outs = {64, 16, 16}, .ranks = {8, 8, 8}, .ends = {70}},
    {.t = 37, .in = 53, .outs = {19, 130}, .ranks = {3, 5}, .ends = {37}, .bias = true},
    {.t = 3, .in = 40, .outs = {24, 7}, .ranks = {4, 2}, .ends = {2, 3}, .bias = true},
    {.t = 70, .in = 512, .outs = {300, 16}, .ranks = {3, 8}, .ends = {33, 70}},
    // Branches that end inside vectors and tiles, some without rows; layers without a branch.
    {.t = 150, .in = 300, .outs = {33, 48}, .ranks = {16, 0}, .ends = {0, 1, 9, 9, 80, 150}},
    {.t = 20, .in = 32, .outs = {32}, .ranks = {130}, .ends = {7, 20, 20}},
};

TEST_P(LinearGroupTest, AgreesWithTheDefinition) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.t);
    const Layers layers(c);
    ExpectNear(layers.Run(Precision::kFloat32, 2), layers.Scalar(), 1e-6);
  }
}

TEST_P(LinearGroupTest, StaysNearTheDefinitionInBfloat16) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.t);
    const Layers layers(c);
    ExpectNear(layers.Run(Precision::kBFloat16, 2), layers.Scalar(), 6e-3);
  }
}

TEST_P(LinearGroupTest, GivesTheSameBytesForAnyNumberOfThreads) {
  for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
    for (const Case& c : kCases) {
      const Layers layers(c);
      const Results one = layers.Run(precision, 1);
      for (const int threads : {2, 5}) {
        const Results more = layers.Run(precision, threads);
        EXPECT_EQ(more.u, one.u);
        EXPECT_EQ(more.y, one.y);
        EXPECT_EQ(more.da, one.da);
        EXPECT_EQ(more.db, one.db);
        EXPECT_EQ(more.dx, one.dx);
      }
    }
  }
}

TEST_P(LinearGroupTest, ComputesOnlyUWithoutAnOutput) {
  const Floats x = RandomFloats(20 * 32, 1), a = RandomFloats(4 * 32, 2), bt(4 * 8);
  const std::vector<LoraFactors> factors = {{a.data(), bt.data()}};
  ForwardLayer layer;
  layer.w = DenseView(nullptr, 8, 32);
  layer.lora = {4, 1, factors};
  Floats u(20 * 4, NAN);
  layer.u = u.data();
  ThreadPool pool(2);
  ForwardGroup({&layer, 1}, x.data(), {20, {20}}, Precision::kFloat32, Accumulate::kNo, pool);
  for (int64_t t = 0; t < 20; ++t) {
    for (int64_t r = 0; r < 4; ++r) {
      double want = 0;
      for (int64_t c = 0; c < 32; ++c) {
        want += double{x[static_cast<size_t>(t * 32 + c)]} * a[static_cast<size_t>(r * 32 + c)];
      }
      EXPECT_NEAR(u[static_cast<size_t>(t * 4 + r)], want, 1e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllTargets, LinearGroupTest,
                         ::testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& target) {
                           return std::string(hwy::TargetName(target.param));
                         });

}  // namespace
}  // namespace fedge
