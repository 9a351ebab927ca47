// A run over an adapter of a few numbers, and hand-made updates for it: the server's tests need no
// model and no training.
#ifndef FEDGE_TESTS_SERVER_TINY_RUN_H_
#define FEDGE_TESTS_SERVER_TINY_RUN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/adapter/lora_adapter.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/codec/update_codec.h"
#include "server/coordinator.h"
#include "server/task_plan.h"

namespace fedge::testing {

inline LoraSpec TinySpec(float alpha = 4) {
  absl::StatusOr<LoraSpec> spec = LoraSpec::Create(
      "llama", alpha,
      {{.tensor = "blk.0.attn_q.weight", .in_features = 8, .out_features = 6, .rank = 2},
       {.tensor = "blk.0.ffn_up.weight", .in_features = 8, .out_features = 16, .rank = 2}});
  FEDGE_CHECK(spec.ok(), spec.status().message());
  return *std::move(spec);
}

inline RunPlan TinyPlan() {
  RunPlan plan;
  plan.seed = 7;
  plan.rounds = 3;
  plan.nodes_per_round = 4;
  plan.min_nodes = 4;
  plan.round_deadline = absl::Seconds(60);
  plan.retry = absl::Seconds(4);
  plan.lora = TinySpec();
  plan.base_model = Sha256Of("tiny base");
  plan.codec = {.support = UpdateSupport::kDense, .value_bits = 16};
  plan.downlink.encoding = DownlinkEncoding::kFp16;
  plan.max_update_bytes =
      EncodedSizeBound(static_cast<uint64_t>(plan.lora.num_parameters()), plan.codec);
  return plan;
}

inline LoraAdapter TinyAdapter() {
  LoraAdapter adapter(TinySpec());
  adapter.InitializeForTraining(1);
  return adapter;
}

inline std::string NodeName(uint64_t i) { return absl::StrCat("node-", i < 10 ? "0" : "", i); }

struct UpdateSpec {
  uint64_t round = 1;
  uint64_t base_version = 0;
  uint64_t num_examples = 10;
  std::vector<float> values = {};  // empty: seeded small ones
  uint64_t seed = 0;
  std::optional<AdapterSlice> slice = std::nullopt;  // default: the version's
};

inline std::string MakeUpdate(const RunPlan& plan, const UpdateSpec& spec) {
  std::vector<float> values = spec.values;
  if (values.empty()) {
    Rng rng(spec.seed);
    values.resize(static_cast<size_t>(plan.lora.num_parameters()));
    for (float& value : values) value = static_cast<float>(rng.Normal() * 0.01);
  }
  UpdateHeader header;
  header.round = spec.round;
  header.base_version = spec.base_version;
  header.num_examples = spec.num_examples;
  header.layout_hash = plan.lora.layout_hash();
  header.base_model = plan.base_model;
  const SliceLayout layout =
      SliceLayout::Create(plan.lora, spec.slice.value_or(SliceOf(plan, spec.base_version))).value();
  absl::StatusOr<std::string> bytes = EncodeUpdate(values, layout, header, plan.codec, {});
  FEDGE_CHECK(bytes.ok(), bytes.status().message());
  return *std::move(bytes);
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_SERVER_TINY_RUN_H_
