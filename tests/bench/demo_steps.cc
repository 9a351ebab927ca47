#include "tests/bench/demo_steps.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "common/base/env.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/model/transformer.h"
#include "common/training/optimizer.h"
#include "tests/bench/machine_peaks.h"

namespace fedge {
namespace {

// Rank 8 on all linears.
LoraAdapter DemoAdapter(const BaseModel& model) {
  LoraTargets targets;
  targets.rank = 8;
  targets.alpha = 16;
  auto spec = model.MakeLoraSpec(targets);
  FEDGE_CHECK(spec.ok(), spec.status().ToString());
  LoraAdapter adapter(*spec);
  adapter.InitializeForTraining(1);
  return adapter;
}

Batch RandomBatch(const BaseModel& model, int64_t sequences, int64_t length) {
  Batch batch;
  batch.batch_size = sequences;
  batch.length = length;
  Rng rng(3);
  for (int64_t i = 0; i < sequences * length; ++i) {
    for (auto* tokens : {&batch.tokens, &batch.targets}) {
      tokens->push_back(
          static_cast<TokenId>(rng.Below(static_cast<uint64_t>(model.config().vocab_size))));
    }
  }
  return batch;
}

}  // namespace

void PrintSharedPasses(const DemoOptions& options) {
  auto model = BaseModel::Load(options.model, *Env::Posix());
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
    return;
  }
  constexpr int64_t kMostNodes = 8, kSequences = 4;
  const int64_t length = std::max<int64_t>(1, options.tokens / kSequences);
  std::printf(
      "\n%s, %lld x %lld tokens a node, rank 8 on all linears: tokens/s\n"
      "nodes  precision  threads  a pass each   one pass\n",
      options.model.c_str(), static_cast<long long>(kSequences), static_cast<long long>(length));
  const std::vector<LoraAdapter> adapters(kMostNodes, DemoAdapter(**model));
  std::vector<std::vector<float>> gradients(kMostNodes,
                                            std::vector<float>(adapters[0].values().size()));
  for (const int64_t nodes : {1, 2, 4, 8}) {
    const Batch alone = RandomBatch(**model, kSequences, length);
    const Batch shared = RandomBatch(**model, kSequences * nodes, length);
    std::vector<AdapterPass> passes;
    for (size_t i = 0; i < static_cast<size_t>(nodes); ++i) {
      passes.push_back({&adapters[i], kSequences, 1.0f / 512, absl::MakeSpan(gradients[i]), {}});
    }
    for (const Precision precision : Precisions()) {
      for (const int threads : {1, 2}) {
        if (threads > ThreadPool::AvailableProcessors()) continue;
        if (options.threads != 0 && options.threads != threads) continue;
        ThreadPool pool(threads);
        Transformer transformer(*model, &pool);
        transformer.set_training_precision(precision);
        double each = 1e9, together = 1e9;
        for (int i = 0; i < options.repeat; ++i) {
          each = std::min(each, Seconds(threads, [&] {
                            for (const AdapterPass& pass : passes) {
                              transformer.LossAndGradients(alone, {pass});
                            }
                          }));
          together = std::min(
              together, Seconds(threads, [&] { transformer.LossAndGradients(shared, passes); }));
        }
        const auto tokens = static_cast<double>(shared.tokens.size());
        std::printf("%5lld  %s  %d  %9.0f  %9.0f %+5.1f%%\n", static_cast<long long>(nodes),
                    NameOf(precision), threads, tokens / each, tokens / together,
                    100 * (each / together - 1));
        std::fflush(stdout);
      }
    }
  }
}

double DemoTokensPerSecond(const DemoOptions& options, Precision precision, int threads) {
  auto model = BaseModel::Load(options.model, *Env::Posix());
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
    return 0;
  }
  LoraAdapter adapter = DemoAdapter(**model);
  const Batch batch = RandomBatch(**model, 4, 128);
  ThreadPool pool(threads);
  Transformer transformer(*model, &pool);
  transformer.set_training_precision(precision);
  AdamW optimizer(static_cast<int64_t>(adapter.values().size()), AdamWOptions());
  std::vector<float> gradient(adapter.values().size());
  double best = 1e9;
  for (int i = 0; i < 3 * options.repeat; ++i) {
    best = std::min(best, Seconds(threads, [&] {
                      std::fill(gradient.begin(), gradient.end(), 0.0f);
                      transformer.LossAndGradient(batch, adapter, 1.0f / 512,
                                                  absl::MakeSpan(gradient));
                      optimizer.Step(gradient, 1e-4f, adapter.values());
                    }));
  }
  return 512 / best;
}

}  // namespace fedge
