#include "server/run_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/config/config_file.h"
#include "fedge/v1/config.pb.h"
#include "fedge/v1/federation.pb.h"
#include "server/task_plan.h"
#include "tests/server/tiny_run.h"

namespace fedge {
namespace {

absl::StatusOr<RunPlan> Plan(absl::string_view yaml) {
  v1::ServerConfig config;
  RETURN_IF_ERROR(ParseConfig(yaml, "test.yaml", config));
  return MakeRunPlan(config, testing::TinySpec(), Sha256Of("base"));
}

std::string ErrorOf(absl::string_view yaml) {
  const auto plan = Plan(yaml);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument) << yaml;
  return std::string(plan.status().message());
}

TEST(RunPlanTest, FillsInTheDocumentedDefaults) {
  const auto plan = Plan("");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->run_id, "default");
  EXPECT_EQ(plan->rounds, 20);
  EXPECT_EQ(plan->nodes_per_round, 16);
  EXPECT_EQ(plan->min_nodes, 16);
  EXPECT_EQ(plan->quorum, 0.5);
  EXPECT_EQ(plan->round_deadline, absl::Minutes(10));
  EXPECT_EQ(plan->retry, absl::Seconds(5));
  EXPECT_EQ(plan->steps, 8);
  EXPECT_EQ(plan->batch_size, 4);
  EXPECT_EQ(plan->length, 128);
  EXPECT_EQ(plan->learning_rate, 2e-3f);
  EXPECT_EQ(plan->clip_norm, 1.0f);
  EXPECT_EQ(plan->weight_decay, 0.0f);
  EXPECT_EQ(plan->validation_fraction, 0.1);
  EXPECT_EQ(plan->codec.support, UpdateSupport::kTopK);
  EXPECT_EQ(plan->codec.density, 0.05);
  EXPECT_EQ(plan->codec.value_bits, 2);
  EXPECT_TRUE(plan->error_feedback);
  EXPECT_EQ(plan->outer.kind, OuterOptimizerKind::kSgd);
  EXPECT_EQ(plan->outer.learning_rate, 1.0);
  EXPECT_EQ(plan->admission.norm_bound, NormBound::kClip);
  EXPECT_EQ(plan->admission.max_norm, 0.0);
  EXPECT_EQ(plan->admission.norm_ratio, 3.0);
  EXPECT_EQ(plan->admission.quarantine_after, 3);
  EXPECT_EQ(plan->admission.quarantine_rounds, 10);
  EXPECT_EQ(plan->admission.quota.requests_per_minute, 6000);
  EXPECT_EQ(plan->admission.quota.upload_bytes_per_day, 0u);
  EXPECT_EQ(plan->admission.quota.open_streams, 4);
  EXPECT_EQ(plan->robust.rule, RobustRule::kNone);
  EXPECT_EQ(plan->max_examples_per_node, 1'000'000u);
  EXPECT_EQ(plan->max_update_bytes,
            EncodedSizeBound(static_cast<uint64_t>(plan->lora.num_parameters()), plan->codec));
  EXPECT_EQ(plan->lora_dropout, 0.0f);
  EXPECT_EQ(plan->proximal_mu, 0.0f);
  EXPECT_FALSE(plan->pace.is_async);
  EXPECT_EQ(plan->pace.over_selection, 1.0);
  EXPECT_EQ(plan->pace.lease, absl::Minutes(1));
  EXPECT_EQ(plan->pace.max_staleness, 3);
  EXPECT_EQ(plan->pace.patience, 0);
  const auto lora = MakeLoraPlan(v1::RunConfig());
  EXPECT_EQ(lora->targets.rank, 8);
  EXPECT_EQ(lora->targets.alpha, 16.0f);
  EXPECT_EQ(lora->targets.modules, std::vector<std::string>{"all"});
  EXPECT_EQ(lora->targets.first_layer, 0);
  EXPECT_EQ(lora->targets.last_layer, -1);
}

TEST(RunPlanTest, TakesHowTheAdapterStartsAndIsScaled) {
  const auto plan =
      Plan("run: {lora: {init: loftq, init_from: full.gguf}, training: {lora_plus_ratio: 16}}");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->init.kind, "loftq");
  EXPECT_EQ(plan->init.unquantized, "full.gguf");
  v1::Assignment assignment;
  FillAssignment(*plan, assignment);
  EXPECT_EQ(assignment.training().lora_plus_ratio(), 16.0f);
  v1::RunConfig run;
  run.mutable_lora()->set_rank(64);
  run.mutable_lora()->set_alpha(16);
  run.mutable_lora()->set_rslora(true);
  EXPECT_EQ(MakeLoraPlan(run)->targets.alpha, 128.0f);
  EXPECT_EQ(ErrorOf("run: {lora: {init: svd}}"),
            "run.lora.init: unknown adapter initialisation \"svd\"; known: zero-b, loftq");
  EXPECT_EQ(ErrorOf("run: {training: {lora_plus_ratio: 0}}"),
            "run.training.lora_plus_ratio: 0 is below 0.001");
}

TEST(RunPlanTest, TakesLayersAndDropoutOfTheAdapter) {
  v1::RunConfig run;
  run.mutable_lora()->set_layers("8-23");
  EXPECT_EQ(MakeLoraPlan(run)->targets.first_layer, 8);
  EXPECT_EQ(MakeLoraPlan(run)->targets.last_layer, 23);
  EXPECT_EQ(ErrorOf("run: {lora: {layers: 3-x}}"),
            "run.lora.layers: \"3-x\": write FIRST-LAST, FIRST- or one layer, from 0 on");
  const auto plan = Plan("run: {training: {lora_dropout: 0.25}}");
  ASSERT_TRUE(plan.ok()) << plan.status();
  v1::Assignment assignment;
  FillAssignment(*plan, assignment);
  EXPECT_EQ(assignment.training().lora_dropout(), 0.25f);
  EXPECT_EQ(ErrorOf("run: {training: {lora_dropout: 1}}"),
            "run.training.lora_dropout: 1 is above 0.99");
}

TEST(RunPlanTest, TakesThePaceOfARun) {
  const auto plan = Plan(
      "retry_seconds: 20\n"
      "run: {mode: async, nodes_per_round: 6, early_stopping: {patience: 3, min_improvement: "
      "0.01},\n"
      "  training: {proximal_mu: 0.5}}");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->pace.is_async);
  EXPECT_EQ(CohortSize(*plan), 12);
  EXPECT_EQ(plan->pace.max_staleness, 64);
  EXPECT_EQ(plan->pace.lease, absl::Seconds(120));
  EXPECT_EQ(plan->pace.patience, 3);
  EXPECT_EQ(plan->pace.min_improvement, 0.01);
  v1::Assignment assignment;
  FillAssignment(*plan, assignment);
  EXPECT_EQ(assignment.training().proximal_mu(), 0.5f);
  EXPECT_EQ(CohortSize(*Plan("run: {nodes_per_round: 10, over_selection: 1.3}")), 13);
  EXPECT_EQ(ErrorOf("run: {mode: fast}"), "run.mode: 'fast' is not known; use sync or async");
  EXPECT_EQ(ErrorOf("run: {over_selection: 0.5}"), "run.over_selection: 0.5 is below 1");
  EXPECT_EQ(ErrorOf("run: {lease_seconds: 5}"), "run.lease_seconds: 5 is below 10");
  EXPECT_EQ(ErrorOf("run: {early_stopping: {}}"), "run.early_stopping.patience: 0 is below 1");
  EXPECT_EQ(ErrorOf("run: {mode: async, max_staleness: 0}"),
            "run.max_staleness: 0, but async needs at least 1");
}

TEST(RunPlanTest, FoldsNothingInWhereVersionsDiffer) {
  for (const char* text :
       {"run: {aggregation: {mode: flora}}", "run: {aggregation: {mode: flexlora}}",
        "run: {aggregation: {mode: rolora}}", "run: {aggregation: {components_per_round: 2}}",
        "run: {aggregation: {robust: multi-krum}}"}) {
    const auto plan = Plan(text);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->pace.max_staleness, 0) << text;
  }
  EXPECT_EQ(Plan("run: {aggregation: {mode: fedex}}")->pace.max_staleness, 3);
  EXPECT_EQ(ErrorOf("run: {max_staleness: 2, aggregation: {mode: flora}}"),
            "run.max_staleness: 2, but the mode makes new factors each round; use "
            "factor-averaging, fedex or ffa");
  EXPECT_EQ(ErrorOf("run: {mode: async, aggregation: {mode: rolora}}"),
            "run.mode: async folds in updates of older versions, but rounds train different parts "
            "of the adapter in turn; use factor-averaging, fedex or ffa, and no "
            "components_per_round");
  EXPECT_EQ(ErrorOf("run: {mode: async, aggregation: {robust: multi-krum}}"),
            "run.mode: async folds in updates of older versions, but run.aggregation.robust "
            "compares updates of one version; use none");
}

TEST(RunPlanTest, TakesWhatIsWritten) {
  const auto plan = Plan(
      "retry_seconds: 0.25\nmax_update_bytes: 2048\n"
      "run: {nodes_per_round: 3, quorum: 1, round_deadline_seconds: 1.5,\n"
      "  training: {clip_norm: 0, validation_fraction: 0},\n"
      "  codec: {support: dense}, aggregation: {server_momentum: 0.9}}");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->retry, absl::Milliseconds(250));
  EXPECT_EQ(plan->min_nodes, 3);
  EXPECT_EQ(plan->round_deadline, absl::Milliseconds(1500));
  EXPECT_EQ(plan->clip_norm, 0.0f);
  EXPECT_EQ(plan->validation_fraction, 0.0);
  EXPECT_EQ(plan->codec.support, UpdateSupport::kDense);
  EXPECT_EQ(plan->codec.value_bits, 16);
  EXPECT_FALSE(plan->error_feedback);  // nothing is left out, so nothing is kept
  EXPECT_EQ(plan->outer.kind, OuterOptimizerKind::kNesterov);
  EXPECT_EQ(plan->outer.beta1, 0.9);
  EXPECT_EQ(plan->outer.learning_rate, 1.0);
  EXPECT_LE(plan->max_update_bytes, 2048u);
}

TEST(RunPlanTest, NamesFieldValueAndLimit) {
  EXPECT_EQ(ErrorOf("run: {rounds: 0}"), "run.rounds: 0 is below 1");
  EXPECT_EQ(ErrorOf("run: {id: 'a b'}"),
            "run.id: only letters, digits, '.', '_' and '-' are allowed");
  EXPECT_EQ(ErrorOf("run: {id: ''}"), "run.id: has 0 characters, allowed are 1 to 64");
  EXPECT_EQ(ErrorOf("run: {nodes_per_round: 0}"), "run.nodes_per_round: 0 is below 1");
  EXPECT_EQ(ErrorOf("run: {min_nodes: 0}"), "run.min_nodes: 0 is below 1");
  EXPECT_EQ(ErrorOf("run: {quorum: 0}"), "run.quorum: 0 must be above 0");
  EXPECT_EQ(ErrorOf("run: {quorum: 1.5}"), "run.quorum: 1.5 is above 1");
  EXPECT_EQ(ErrorOf("run: {round_deadline_seconds: 0}"),
            "run.round_deadline_seconds: 0 is below 0.001");
  EXPECT_EQ(ErrorOf("run: {lora: {rank: 5000}}"), "run.lora.rank: 5000 is above 1024");
  EXPECT_EQ(ErrorOf("run: {lora: {rank: 0}}"), "run.lora.rank: 0 is below 1");
  EXPECT_EQ(ErrorOf("run: {lora: {alpha: -1}}"), "run.lora.alpha: -1 must be above 0");
  EXPECT_EQ(ErrorOf("run: {training: {steps: 0}}"), "run.training.steps: 0 is below 1");
  EXPECT_EQ(ErrorOf("run: {training: {batch_size: 0}}"), "run.training.batch_size: 0 is below 1");
  EXPECT_EQ(ErrorOf("run: {training: {length: 1}}"), "run.training.length: 1 is below 2");
  EXPECT_EQ(ErrorOf("run: {training: {learning_rate: 0}}"),
            "run.training.learning_rate: 0 must be above 0");
  EXPECT_EQ(ErrorOf("run: {training: {validation_fraction: 1}}"),
            "run.training.validation_fraction: 1 is above 0.9");
  EXPECT_EQ(ErrorOf("run: {codec: {support: gzip}}"),
            "run.codec.support: 'gzip' is not known; use top-k, trellis, seeded or dense");
  EXPECT_EQ(ErrorOf("run: {codec: {density: 0}}"), "run.codec.density: 0 must be above 0");
  EXPECT_EQ(ErrorOf("run: {codec: {value_bits: 5}}"),
            "run.codec.value_bits: 5 is none of 1, 2, 3, 4, 8, 16");
  EXPECT_EQ(ErrorOf("run: {codec: {stochastic: true}}"),
            "run.codec.stochastic: needs no_error_feedback; error feedback makes up for what the "
            "nearest value loses");
  EXPECT_EQ(ErrorOf("run: {aggregation: {server_momentum: 1}}"),
            "run.aggregation.server_momentum: 1 is above 0.999");
  EXPECT_EQ(ErrorOf("keep_versions: 1"), "keep_versions: 1 is below 2");
  EXPECT_EQ(ErrorOf("retry_seconds: 0"), "retry_seconds: 0 is below 0.001");
  EXPECT_EQ(ErrorOf("max_update_bytes: 5"), "max_update_bytes: 5 is below 1024");
}

TEST(RunPlanTest, ATrellisComesWithWhatWasMeasuredForIt) {
  const auto plan = Plan("run: {codec: {support: trellis}}");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->codec.support, UpdateSupport::kTrellis);
  EXPECT_EQ(plan->codec.density, 0.125);
  EXPECT_EQ(plan->codec.relaxation, 1.6);
  EXPECT_EQ(plan->feedback.decay, 0.5);
  EXPECT_TRUE(plan->error_feedback);
  EXPECT_DOUBLE_EQ(plan->outer.learning_rate, 2.2);
  EXPECT_TRUE(plan->downlink.trellis);
  EXPECT_EQ(plan->downlink.bits_per_parameter, 0.25);
  EXPECT_EQ(plan->downlink.relaxation, 1.3);
  // The larger outer step makes up for what is forgotten, and only for that.
  const auto rate = [](absl::string_view more) {
    return Plan(absl::StrCat("run: {codec: {support: trellis, ", more, "}}"))->outer.learning_rate;
  };
  EXPECT_DOUBLE_EQ(rate("bits_per_parameter: 0.25"), 1.6);
  EXPECT_DOUBLE_EQ(rate("bits_per_parameter: 0.015625"), 4);
  EXPECT_DOUBLE_EQ(rate("residual_decay: 1"), 1);
  EXPECT_DOUBLE_EQ(rate("no_error_feedback: true"), 1);
  EXPECT_EQ(
      Plan("run: {codec: {support: trellis}, aggregation: {mode: flexlora}}")->outer.learning_rate,
      1);
}

TEST(RunPlanTest, ModesThatTrainOneFactorTakeLongerSteps) {
  for (const char* mode : {"rolora", "ffa"}) {
    const auto outer = [mode](absl::string_view more) {
      return Plan(absl::StrCat("run: {aggregation: {mode: ", mode, more, "}}"))->outer;
    };
    EXPECT_EQ(outer("").kind, OuterOptimizerKind::kNesterov) << mode;
    EXPECT_EQ(outer("").beta1, 0.5) << mode;
    EXPECT_EQ(outer(", optimizer: sgd").kind, OuterOptimizerKind::kSgd) << mode;
    EXPECT_EQ(outer(", server_learning_rate: 1").kind, OuterOptimizerKind::kSgd) << mode;
    EXPECT_EQ(outer(", server_momentum: 0").kind, OuterOptimizerKind::kSgd) << mode;
  }
  EXPECT_EQ(Plan("{}")->outer.kind, OuterOptimizerKind::kSgd);
}

TEST(RunPlanTest, ReadsATrellisBothWays) {
  const auto plan = Plan(
      "run: {codec: {support: trellis, residual_decay: 0.25}, downlink: {coding: trellis, "
      "relaxation: 1.2}, aggregation: {server_learning_rate: 1.5}}");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->feedback.decay, 0.25);
  EXPECT_EQ(plan->outer.learning_rate, 1.5);
  EXPECT_EQ(plan->downlink.relaxation, 1.2);
  EXPECT_FALSE(
      Plan("run: {codec: {support: trellis}, downlink: {coding: levels}}")->downlink.trellis);
  EXPECT_FALSE(
      Plan("run: {codec: {support: trellis}, downlink: {density: 0.1}}")->downlink.trellis);
  EXPECT_FALSE(Plan("run: {codec: {support: trellis}, downlink: {bits_per_parameter: 2}}")
                   ->downlink.trellis);
  EXPECT_TRUE(Plan("run: {downlink: {coding: trellis}}")->downlink.trellis);
  EXPECT_EQ(Plan("run: {codec: {support: trellis, no_error_feedback: true}}")->codec.relaxation, 1);
  EXPECT_EQ(ErrorOf("run: {codec: {support: trellis, bits_per_parameter: 0.01}}"),
            "run.codec.bits_per_parameter: 0.01 is below 0.015625");
  EXPECT_EQ(ErrorOf("run: {codec: {support: trellis, value_bits: 2}}"),
            "run.codec: density, value_bits and stochastic are not for a trellis; use "
            "bits_per_parameter");
  EXPECT_EQ(ErrorOf("run: {codec: {support: trellis, relaxation: 2}}"),
            "run.codec.relaxation: 2 is above 1.99");
  EXPECT_EQ(ErrorOf("run: {codec: {residual_decay: 2}}"), "run.codec.residual_decay: 2 is above 1");
  EXPECT_EQ(ErrorOf("run: {downlink: {coding: trellis, levels: 2}}"),
            "run.downlink: density and levels are not for a trellis; use bits_per_parameter");
  EXPECT_EQ(ErrorOf("run: {downlink: {coding: zip}}"),
            "run.downlink.coding: 'zip' is not known; use levels or trellis");
  EXPECT_EQ(ErrorOf("run: {downlink: {coding: trellis, bits_per_parameter: 2}}"),
            "run.downlink.bits_per_parameter: 2 is above 1");
}

TEST(RunPlanTest, ReadsHowVersionsTravel) {
  EXPECT_EQ(Plan("{}")->downlink.encoding, DownlinkEncoding::kDelta);
  EXPECT_EQ(Plan("run: {downlink: {encoding: exact}}")->downlink.encoding,
            DownlinkEncoding::kExact);
  EXPECT_EQ(Plan("run: {downlink: {encoding: fp16}}")->downlink.encoding, DownlinkEncoding::kFp16);
  EXPECT_EQ(Plan("run: {downlink: {bits_per_parameter: 0.25}}")->downlink.bits_per_parameter, 0.25);
  const auto by_density = Plan("run: {downlink: {density: 0.03, levels: 4}}");
  EXPECT_EQ(by_density->downlink.density, 0.03);
  EXPECT_EQ(by_density->downlink.levels, 4);
  EXPECT_EQ(Plan("run: {aggregation: {mode: flexlora}}")->downlink.encoding,
            DownlinkEncoding::kFp16);  // its versions have no frame in common
  EXPECT_EQ(
      Plan("run: {aggregation: {mode: flexlora}, downlink: {encoding: delta}}")->downlink.encoding,
      DownlinkEncoding::kDelta);
  EXPECT_EQ(ErrorOf("run: {downlink: {encoding: zip}}"),
            "run.downlink.encoding: 'zip' is not known; use delta, fp16 or exact");
  EXPECT_EQ(ErrorOf("run: {downlink: {bits_per_parameter: 0}}"),
            "run.downlink.bits_per_parameter: 0 must be above 0");
  EXPECT_EQ(ErrorOf("run: {downlink: {bits_per_parameter: 33}}"),
            "run.downlink.bits_per_parameter: 33 is above 32");
  EXPECT_EQ(ErrorOf("run: {downlink: {density: 1.5}}"), "run.downlink.density: 1.5 is above 1");
  EXPECT_EQ(ErrorOf("run: {downlink: {levels: 0}}"), "run.downlink.levels: 0 is below 1");
  EXPECT_EQ(ErrorOf("run: {downlink: {density: 0.1, bits_per_parameter: 1}}"),
            "run.downlink: give bits_per_parameter or density, not both");
}

TEST(RunPlanTest, ReadsWhatAnUpdateMustPass) {
  const auto plan = Plan(
      "run: {admission: {norm_bound: reject, max_norm: 2.5, quarantine_after: 0,\n"
      "  quarantine_rounds: 4, max_requests_per_minute: 0, max_upload_bytes_per_day: 1000000,\n"
      "  max_open_streams: 1}}");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->admission.norm_bound, NormBound::kReject);
  EXPECT_EQ(plan->admission.max_norm, 2.5);
  EXPECT_EQ(plan->admission.quarantine_after, 0);
  EXPECT_EQ(plan->admission.quarantine_rounds, 4);
  EXPECT_EQ(plan->admission.quota.requests_per_minute, 0);
  EXPECT_EQ(plan->admission.quota.upload_bytes_per_day, 1000000u);
  EXPECT_EQ(plan->admission.quota.open_streams, 1);
  EXPECT_EQ(Plan("run: {admission: {norm_bound: off}}")->admission.norm_bound, NormBound::kOff);
  EXPECT_EQ(ErrorOf("run: {admission: {norm_bound: trim}}"),
            "run.admission.norm_bound: 'trim' is not known; use off, clip or reject");
  EXPECT_EQ(ErrorOf("run: {admission: {max_norm: 0}}"),
            "run.admission.max_norm: 0 must be above 0");
  EXPECT_EQ(ErrorOf("run: {admission: {max_norm: 1, norm_ratio: 2}}"),
            "run.admission: give max_norm or norm_ratio, not both");
  EXPECT_EQ(ErrorOf("run: {admission: {norm_ratio: 0.5}}"),
            "run.admission.norm_ratio: 0.5 is below 1");
  EXPECT_EQ(ErrorOf("run: {admission: {quarantine_rounds: 0}}"),
            "run.admission.quarantine_rounds: 0 is below 1");
}

TEST(RunPlanTest, ReadsTheRobustRule) {
  const auto krum = Plan("run: {aggregation: {robust: multi-krum, robust_keep: 3}}");
  ASSERT_TRUE(krum.ok()) << krum.status();
  EXPECT_EQ(krum->robust.rule, RobustRule::kMultiKrum);
  EXPECT_EQ(krum->robust.attackers, 0.2);
  EXPECT_EQ(krum->robust.keep, 3);
  EXPECT_EQ(Plan("run: {aggregation: {robust: none}}")->robust.rule, RobustRule::kNone);
  EXPECT_EQ(Plan("run: {aggregation: {robust: geometric-median, mode: flora}}")->robust.rule,
            RobustRule::kGeometricMedian);
  for (const char* const codec : {"support: dense", "support: seeded, shared_support: true",
                                  "support: top-k, density: 0.6"}) {
    const auto median =
        Plan(absl::StrCat("run: {aggregation: {robust: median}, codec: {", codec, "}}"));
    EXPECT_TRUE(median.ok()) << codec << ": " << median.status();
  }
  EXPECT_EQ(ErrorOf("run: {aggregation: {robust: mode}}"),
            "run.aggregation.robust: 'mode' is not known; use none, median, trimmed-mean, "
            "multi-krum or geometric-median");
  EXPECT_EQ(ErrorOf("run: {aggregation: {robust: median, robust_attackers: 0.5}}"),
            "run.aggregation.robust_attackers: 0.5 is above 0.499");
  EXPECT_EQ(ErrorOf("run: {aggregation: {robust: median, mode: fedex}, codec: {support: dense}}"),
            "run.aggregation.robust: median gives each coordinate a value, but mode fedex needs "
            "means of products; use multi-krum or geometric-median");
  EXPECT_EQ(ErrorOf("run: {aggregation: {robust: median, coordinate_mean: true}}"),
            "run.aggregation.robust: with coordinate_mean one node alone decides a coordinate "
            "that no other sent; switch it off");
  EXPECT_EQ(ErrorOf("run: {aggregation: {robust: trimmed-mean}}"),
            "run.aggregation.robust: trimmed-mean is 0 where fewer than half of the nodes send a "
            "value; set run.codec.support to dense or to seeded with shared_support, or use "
            "multi-krum or geometric-median");
  EXPECT_EQ(ErrorOf("run: {nodes_per_round: 8, aggregation: {robust: multi-krum, "
                    "robust_attackers: 0.4}}"),
            "run.aggregation.robust: multi-krum against 4 attackers needs 11 nodes, "
            "run.nodes_per_round is 8; lower robust_attackers or draw more");
  EXPECT_EQ(ErrorOf("run: {aggregation: {robust: multi-krum, robust_keep: 13}}"),
            "run.aggregation.robust_keep: 13 is above 12");
  EXPECT_EQ(ErrorOf("run: {nodes_per_round: 1001, aggregation: {robust: geometric-median}}"),
            "run.aggregation.robust: geometric-median compares all pairs of at most 1000 updates, "
            "run.nodes_per_round is 1001");
}

TEST(RunPlanTest, TellsDevicesASeedThatIsNotTheRuns) {
  const auto plan = Plan("run: {seed: 3}");
  EXPECT_NE(AdapterSeed(*plan), 3u);
  EXPECT_NE(AdapterSeed(*plan), AdapterSeed(*Plan("run: {seed: 4}")));
}

TEST(RunPlanTest, KeepsAFullCohortOfHeavyNodesWithinTheSum) {
  EXPECT_EQ(Plan("run: {nodes_per_round: 100000}")->max_examples_per_node, 21474u);
  EXPECT_EQ(ErrorOf("run: {nodes_per_round: 100000, "
                    "aggregation: {max_examples_per_node: 21475}}"),
            "run.aggregation.max_examples_per_node: 21475 is above 21474");
}

TEST(RunPlanTest, TheDensityWarmsUp) {
  const auto plan = Plan("run: {codec: {density: 0.01, warmup_rounds: 4}}");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_DOUBLE_EQ(CodecDensity(*plan, 0), 0.25);
  EXPECT_NEAR(CodecDensity(*plan, 1), 0.1118, 1e-4);
  EXPECT_NEAR(CodecDensity(*plan, 2), 0.05, 1e-9);
  EXPECT_NEAR(CodecDensity(*plan, 3), 0.02236, 1e-5);
  for (const uint64_t version : {4, 5, 1000}) EXPECT_EQ(CodecDensity(*plan, version), 0.01);
  // The first rounds' updates are let in.
  EncodeOptions first = plan->codec;
  first.density = 0.25;
  EXPECT_EQ(plan->max_update_bytes,
            EncodedSizeBound(static_cast<uint64_t>(plan->lora.num_parameters()), first));
}

TEST(RunPlanTest, TakesABudget) {
  EXPECT_EQ(Plan("run: {codec: {budget_bytes: 5000}}")->codec.budget_bytes, 5000u);
  EXPECT_EQ(Plan("run: {codec: {budget_bytes: 5000}}")->max_update_bytes, 5000u);
  EXPECT_EQ(Plan("run: {codec: {link: nb-iot}}")->codec.budget_bytes, 24000u);
  EXPECT_EQ(Plan("run: {round_deadline_seconds: 3600, codec: {budget_bytes_per_day: 240000}}")
                ->codec.budget_bytes,
            10000u);
  EXPECT_EQ(ErrorOf("run: {codec: {link: pigeon}}"),
            "run.codec.link: 'pigeon' is not known; use lora-radio, nb-iot, lte-m, 3g or wifi");
  EXPECT_EQ(ErrorOf("run: {codec: {link: wifi, budget_bytes: 9000}}"),
            "run.codec: give one of budget_bytes, budget_bytes_per_day and link");
  EXPECT_EQ(ErrorOf("run: {codec: {support: dense, budget_bytes: 9000}}"),
            "run.codec: a budget needs top-k, trellis or seeded, dense sends every value");
  EXPECT_EQ(ErrorOf("run: {codec: {budget_bytes: 100}}"),
            "run.codec: a budget of bytes a round: 100 is below 256");
}

TEST(RunPlanTest, PassesMomentumCorrectionOn) {
  v1::Assignment assignment;
  FillAssignment(*Plan("run: {codec: {momentum_correction: 0.9}}"), assignment);
  EXPECT_EQ(assignment.codec().momentum_correction(), 0.9);
  FillAssignment(*Plan("run: {}"), assignment);
  EXPECT_EQ(assignment.codec().momentum_correction(), 0.0);
  EXPECT_EQ(ErrorOf("run: {codec: {momentum_correction: 1}}"),
            "run.codec.momentum_correction: 1 is above 0.99");
  EXPECT_EQ(ErrorOf("run: {codec: {momentum_correction: 0.9, no_error_feedback: true}}"),
            "run.codec.momentum_correction: needs error feedback, which no_error_feedback, dense "
            "fp16 values or a mode that rotates the adapter's frame turn off; use "
            "run.aggregation.server_momentum");
  EXPECT_EQ(ErrorOf("run: {codec: {momentum_correction: 0.9}, aggregation: {mode: flexlora}}"),
            ErrorOf("run: {codec: {momentum_correction: 0.9, no_error_feedback: true}}"));
}

TEST(RunPlanTest, FillsAssignments) {
  auto plan = Plan("run: {seed: 3, training: {steps: 5}, codec: {no_error_feedback: true}}");
  v1::Assignment assignment;
  FillAssignment(*plan, assignment);
  EXPECT_EQ(assignment.run_id(), "default");
  EXPECT_EQ(assignment.training().steps(), 5u);
  EXPECT_EQ(assignment.codec().support(), v1::CodecPlan::TOP_K);
  EXPECT_EQ(assignment.codec().value_bits(), 2u);
  EXPECT_FALSE(assignment.codec().error_feedback());
  EXPECT_EQ(assignment.lora().alpha(), 4.0f);
  EXPECT_EQ(assignment.lora().modules(0).tensor(), "blk.0.attn_q.weight");
  const uint64_t split_seed = assignment.training().split_seed();
  plan->seed = 4;
  v1::Assignment other;
  FillAssignment(*plan, other);
  EXPECT_NE(other.training().split_seed(), split_seed);
}

TEST(RunPlanTest, SlicesFollowTheModeAndTakeTurns) {
  const AdapterSlice whole;
  EXPECT_EQ(SliceOf(*Plan("{}"), 0), whole);
  EXPECT_EQ(SliceOf(*Plan("run: {aggregation: {mode: factor-averaging}}"), 5), whole);
  const auto ffa = Plan("run: {aggregation: {mode: ffa}}");
  const AdapterSlice b{SliceFactors::kB, 0, kMaxLoraRank};
  EXPECT_EQ(SliceOf(*ffa, 0), b);
  EXPECT_EQ(SliceOf(*ffa, 1), b);
  const auto rolora = Plan("run: {aggregation: {mode: rolora}}");
  EXPECT_EQ(SliceOf(*rolora, 0), b);
  EXPECT_EQ(SliceOf(*rolora, 1), (AdapterSlice{SliceFactors::kA, 0, kMaxLoraRank}));
  // The plan's adapter has rank 2.
  const auto turns = Plan("run: {aggregation: {components_per_round: 1}}");
  EXPECT_EQ(SliceOf(*turns, 0), (AdapterSlice{SliceFactors::kBoth, 0, 1}));
  EXPECT_EQ(SliceOf(*turns, 1), (AdapterSlice{SliceFactors::kBoth, 1, 2}));
  EXPECT_EQ(SliceOf(*turns, 2), (AdapterSlice{SliceFactors::kBoth, 0, 1}));
  const auto both = Plan("run: {aggregation: {mode: rolora, components_per_round: 1}}");
  EXPECT_EQ(SliceOf(*both, 1), (AdapterSlice{SliceFactors::kA, 0, 1}));
  EXPECT_EQ(SliceOf(*both, 2), (AdapterSlice{SliceFactors::kB, 1, 2}));
  EXPECT_EQ(ErrorOf("run: {aggregation: {mode: fedavg}}"),
            "run.aggregation.mode: 'fedavg' is not known; use factor-averaging, rolora, ffa, "
            "flexlora, fedex or flora");
  EXPECT_EQ(ErrorOf("run: {aggregation: {components_per_round: 3}}"),
            "run.aggregation.components_per_round: 3 is above 2");
}

TEST(RunPlanTest, CorrectionsAreFrozenComponentsOfTheAdapter) {
  v1::RunConfig run;
  run.mutable_lora()->set_rank(4);
  run.mutable_lora()->set_alpha(10);
  run.mutable_aggregation()->set_mode("fedex");
  run.mutable_aggregation()->set_correction_rank(2);
  EXPECT_EQ(MakeLoraPlan(run)->targets.rank, 6);
  EXPECT_EQ(MakeLoraPlan(run)->trained_rank, 4);
  EXPECT_EQ(MakeLoraPlan(run)->targets.alpha, 15.0f);  // 15 / 6 = 10 / 4
  run.mutable_aggregation()->clear_correction_rank();
  EXPECT_EQ(MakeLoraPlan(run)->targets.rank, 8);
  run.mutable_aggregation()->set_mode("rolora");
  EXPECT_EQ(MakeLoraPlan(run)->targets.rank, 4);
  run.mutable_aggregation()->set_correction_rank(2);
  EXPECT_EQ(MakeLoraPlan(run).status().message(),
            "run.aggregation.correction_rank: only modes fedex and flora have one");
  // Nodes train the first components: here 1 of the plan's adapter of rank 2.
  const auto plan = Plan("run: {lora: {rank: 1}, aggregation: {mode: flora}}");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(SliceOf(*plan, 3), (AdapterSlice{SliceFactors::kBoth, 0, 1}));
  EXPECT_FALSE(plan->error_feedback);
}

TEST(RunPlanTest, NodesTrainTheRankTheyHave) {
  const auto plan = Plan(
      "run: {seed: 3, lora: {node_ranks: [{rank: 1, below_memory_bytes: 1000},"
      "                                   {rank: 1, share: 0.25}]}}");
  ASSERT_TRUE(plan.ok()) << plan.status();
  const AdapterSlice whole;
  const AdapterSlice small{SliceFactors::kBoth, 0, 1};
  int small_nodes = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::string node = absl::StrCat("node-", i);
    EXPECT_EQ(NodeSlice(*plan, 0, node, 999), small);
    const AdapterSlice slice = NodeSlice(*plan, 0, node, 0);
    EXPECT_EQ(NodeSlice(*plan, 7, node, 1000), slice);
    small_nodes += slice == small ? 1 : 0;
  }
  EXPECT_NEAR(small_nodes, 250, 45);
  EXPECT_TRUE(IsPlannedSlice(*plan, 0, whole));
  EXPECT_TRUE(IsPlannedSlice(*plan, 0, small));
  EXPECT_FALSE(IsPlannedSlice(*plan, 0, {SliceFactors::kBoth, 0, 2}));
  EXPECT_FALSE(IsPlannedSlice(*plan, 0, {SliceFactors::kB, 0, 1}));
  EXPECT_EQ(ErrorOf("run: {lora: {node_ranks: [{rank: 3, share: 0.5}]}}"),
            "run.lora.node_ranks[0].rank: 3 is above 2");
  EXPECT_EQ(ErrorOf("run: {lora: {node_ranks: [{rank: 0, share: 0.5}]}}"),
            "run.lora.node_ranks[0].rank: 0 is below 1");
  EXPECT_EQ(ErrorOf("run: {lora: {node_ranks: [{rank: 1}]}}"),
            "run.lora.node_ranks[0]: rank 1 needs either a share or below_memory_bytes");
  EXPECT_EQ(ErrorOf("run: {lora: {node_ranks: [{rank: 1, share: 0.6}, {rank: 2, share: 0.5}]}}"),
            "run.lora.node_ranks: the sum of shares: 1.1 is above 1");
  EXPECT_EQ(ErrorOf("run: {lora: {node_ranks: [{rank: 1, share: 0.5}]},"
                    " aggregation: {components_per_round: 1}}"),
            "run.lora.node_ranks: cannot be combined with components_per_round");
}

TEST(RunPlanTest, TakesTheOuterOptimizer) {
  const auto nesterov = Plan("run: {aggregation: {optimizer: nesterov}}");
  ASSERT_TRUE(nesterov.ok()) << nesterov.status();
  EXPECT_EQ(nesterov->outer.kind, OuterOptimizerKind::kNesterov);
  EXPECT_EQ(nesterov->outer.learning_rate, 1.0);
  EXPECT_EQ(nesterov->outer.beta1, 0.5);
  const auto yogi = Plan(
      "run: {aggregation: {optimizer: yogi, server_learning_rate: 0.02, server_momentum: 0,"
      " server_beta2: 0.9, server_epsilon: 0.01}}");
  ASSERT_TRUE(yogi.ok()) << yogi.status();
  EXPECT_EQ(yogi->outer.kind, OuterOptimizerKind::kYogi);
  EXPECT_EQ(yogi->outer.learning_rate, 0.02);
  EXPECT_EQ(yogi->outer.beta1, 0.0);
  EXPECT_EQ(yogi->outer.beta2, 0.9);
  EXPECT_EQ(yogi->outer.epsilon, 0.01);
  const auto adam = Plan("run: {aggregation: {optimizer: adam}}");
  EXPECT_EQ(adam->outer.kind, OuterOptimizerKind::kAdam);
  EXPECT_EQ(adam->outer.beta1, 0.9);
  EXPECT_EQ(ErrorOf("run: {aggregation: {optimizer: lamb}}"),
            "run.aggregation.optimizer: 'lamb' is not known; use sgd, nesterov, adam or yogi");
  EXPECT_EQ(ErrorOf("run: {aggregation: {mode: flexlora, server_momentum: 0.5}}"),
            "run.aggregation: mode flexlora makes new factors each round, which an outer optimizer "
            "cannot follow; use sgd with a server_learning_rate of 1");
  EXPECT_EQ(ErrorOf("run: {aggregation: {mode: fedex, coordinate_mean: true}}"),
            "run.aggregation.coordinate_mean: mode fedex works on the mean over all nodes; use "
            "factor-averaging, rolora or ffa");
  EXPECT_EQ(ErrorOf("run: {aggregation: {server_epsilon: 0}}"),
            "run.aggregation.server_epsilon: 0 is below 1e-09");
}

TEST(RunPlanTest, LetsTheLocalLearningRateFallOverTheRounds) {
  auto plan = Plan("run: {rounds: 3, training: {learning_rate: 0.01}}");
  EXPECT_FLOAT_EQ(LocalLearningRate(*plan, 0), 0.01f);
  EXPECT_FLOAT_EQ(LocalLearningRate(*plan, 1), 0.0055f);  // half way between 0.01 and a tenth
  EXPECT_FLOAT_EQ(LocalLearningRate(*plan, 2), 0.001f);
  plan->final_learning_rate_fraction = 1;
  EXPECT_FLOAT_EQ(LocalLearningRate(*plan, 2), 0.01f);
  plan->rounds = 1;
  EXPECT_FLOAT_EQ(LocalLearningRate(*plan, 0), 0.01f);
  EXPECT_EQ(ErrorOf("run: {training: {final_learning_rate_fraction: 2}}"),
            "run.training.final_learning_rate_fraction: 2 is above 1");
}

}  // namespace
}  // namespace fedge
