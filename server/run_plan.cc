#include "server/run_plan.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "fedge/v1/config.pb.h"
#include "server/aggregator.h"
#include "server/codec_plan.h"
#include "server/config_limits.h"
#include "server/task_plan.h"

namespace fedge {
namespace {

void CheckRunId(const std::string& id, Limits& limits) {
  if (id.empty() || id.size() > 64) {
    limits.Fail(absl::StrCat("run.id: has ", id.size(), " characters, allowed are 1 to 64"));
  }
  for (const char c : id) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-') {
      limits.Fail("run.id: only letters, digits, '.', '_' and '-' are allowed");
    }
  }
}

void FillRounds(const v1::RunConfig& run, Limits& limits, RunPlan& plan) {
  if (run.has_id()) plan.run_id = run.id();
  CheckRunId(plan.run_id, limits);
  plan.seed = run.seed();
  if (run.has_rounds()) plan.rounds = run.rounds();
  limits.Within<int64_t>("run.rounds", plan.rounds, 1, 1'000'000);
  if (run.has_nodes_per_round()) plan.nodes_per_round = run.nodes_per_round();
  limits.Within<int64_t>("run.nodes_per_round", plan.nodes_per_round, 1, 100'000);
  plan.min_nodes = run.has_min_nodes() ? run.min_nodes() : plan.nodes_per_round;
  limits.Within<int64_t>("run.min_nodes", plan.min_nodes, 1, 1'000'000);
  if (run.has_quorum()) plan.quorum = run.quorum();
  limits.AtMost("run.quorum", limits.Above("run.quorum", plan.quorum, 0.0), 1.0);
  const double deadline = run.has_round_deadline_seconds() ? run.round_deadline_seconds() : 600;
  limits.Within("run.round_deadline_seconds", deadline, 0.001, 7.0 * 86400);
  plan.round_deadline = absl::Seconds(deadline);
}

void FillTraining(const v1::TrainingConfig& training, Limits& limits, RunPlan& plan) {
  if (training.has_steps()) plan.steps = training.steps();
  limits.Within<int64_t>("run.training.steps", plan.steps, 1, 1'000'000);
  if (training.has_batch_size()) plan.batch_size = training.batch_size();
  limits.Within<int64_t>("run.training.batch_size", plan.batch_size, 1, 4096);
  if (training.has_length()) plan.length = training.length();
  limits.Within<int64_t>("run.training.length", plan.length, 2, 131072);
  if (training.has_learning_rate()) plan.learning_rate = training.learning_rate();
  limits.AtMost("run.training.learning_rate",
                limits.Above("run.training.learning_rate", plan.learning_rate, 0.0f), 10.0f);
  if (training.has_final_learning_rate_fraction()) {
    plan.final_learning_rate_fraction = training.final_learning_rate_fraction();
  }
  limits.Within("run.training.final_learning_rate_fraction", plan.final_learning_rate_fraction,
                0.0f, 1.0f);
  if (training.has_clip_norm()) plan.clip_norm = training.clip_norm();
  limits.AtLeast("run.training.clip_norm", plan.clip_norm, 0.0f);
  if (training.has_weight_decay()) plan.weight_decay = training.weight_decay();
  limits.Within("run.training.weight_decay", plan.weight_decay, 0.0f, 1.0f);
  if (training.has_completion_weight()) plan.completion_weight = training.completion_weight();
  limits.Within("run.training.completion_weight", plan.completion_weight, 1e-3f, 1e3f);
  if (training.has_lora_plus_ratio()) plan.lora_plus_ratio = training.lora_plus_ratio();
  limits.Within("run.training.lora_plus_ratio", plan.lora_plus_ratio, 1e-3f, 1e3f);
  plan.lora_dropout = training.lora_dropout();
  limits.Within("run.training.lora_dropout", plan.lora_dropout, 0.0f, 0.99f);
  plan.proximal_mu = training.proximal_mu();
  limits.Within("run.training.proximal_mu", plan.proximal_mu, 0.0f, 1000.0f);
  if (training.has_validation_fraction()) plan.validation_fraction = training.validation_fraction();
  limits.Within("run.training.validation_fraction", plan.validation_fraction, 0.0, 0.9);
}

struct Mode {
  absl::string_view name;
  AggregationMode mode;
};
constexpr Mode kModes[] = {{"factor-averaging", AggregationMode::kFactorAveraging},
                           {"rolora", AggregationMode::kRoLora},
                           {"ffa", AggregationMode::kFfa},
                           {"flexlora", AggregationMode::kFlexLora},
                           {"fedex", AggregationMode::kFedEx},
                           {"flora", AggregationMode::kFlora}};

constexpr int kMaxNodeRanks = 8;

void FillMode(const v1::AggregationConfig& aggregation, Limits& limits, RunPlan& plan) {
  if (aggregation.has_mode()) {
    const auto named = std::find_if(std::begin(kModes), std::end(kModes), [&](const Mode& mode) {
      return mode.name == aggregation.mode();
    });
    if (named == std::end(kModes)) {
      limits.Fail(absl::StrCat(
          "run.aggregation.mode: '", aggregation.mode(),
          "' is not known; use factor-averaging, rolora, ffa, flexlora, fedex or flora"));
    } else {
      plan.aggregation = named->mode;
    }
  }
  plan.components_per_round = aggregation.components_per_round();
  limits.AtMost("run.aggregation.components_per_round", plan.components_per_round,
                TrainedRank(plan));
  plan.coordinate_mean = aggregation.coordinate_mean();
  if (plan.coordinate_mean && Decomposes(plan.aggregation)) {
    limits.Fail(absl::StrCat("run.aggregation.coordinate_mean: mode ", aggregation.mode(),
                             " works on the mean over all nodes; use factor-averaging, rolora or "
                             "ffa"));
  }
  for (const LoraModule& module : plan.lora.modules()) {
    if (plan.aggregation == AggregationMode::kFlexLora && module.rank > module.in_features) {
      limits.Fail(absl::StrCat("run.lora.rank: flexlora needs at most ", module.in_features,
                               ", the inputs of ", module.tensor));
    }
  }
}

// What a node forgets of its residual, a larger step makes up for. Measured at 1/8 and 1/4 bit with
// half of it forgotten: 2.2 and 1.6 (docs/quality.md).
double RateForTrellis(const RunPlan& plan) {
  double bits = plan.codec.density;
  if (plan.codec.budget_bytes > 0) {
    bits = 8 * static_cast<double>(plan.codec.budget_bytes) /
           static_cast<double>(std::max<int64_t>(plan.lora.num_parameters(), 1));
  }
  return std::min(1 + 0.3 * (1 - plan.feedback.decay) / std::min(bits, 1.0), 4.0);
}

// A round moves half of the adapter, or the half that moves at all: a longer step is worth more
// there than elsewhere (docs/quality.md).
bool TrainsOneFactor(AggregationMode mode) {
  return mode == AggregationMode::kRoLora || mode == AggregationMode::kFfa;
}

void FillOuterOptimizer(const v1::AggregationConfig& aggregation, Limits& limits, RunPlan& plan) {
  OuterOptimizer& outer = plan.outer;
  outer.beta1 = aggregation.server_momentum();
  const std::string& name = aggregation.optimizer();
  if (name == "adam" || name == "yogi") {
    outer.kind = name == "adam" ? OuterOptimizerKind::kAdam : OuterOptimizerKind::kYogi;
    outer.learning_rate = 0.01;
    if (!aggregation.has_server_momentum()) outer.beta1 = 0.9;
  } else if (name == "nesterov") {
    outer.kind = OuterOptimizerKind::kNesterov;
    if (!aggregation.has_server_momentum()) outer.beta1 = 0.5;
  } else if (!name.empty() && name != "sgd") {
    limits.Fail(absl::StrCat("run.aggregation.optimizer: '", name,
                             "' is not known; use sgd, nesterov, adam or yogi"));
  } else if (name.empty() && outer.beta1 > 0) {
    outer.kind = OuterOptimizerKind::kNesterov;
  } else if (plan.codec.support == UpdateSupport::kTrellis && plan.error_feedback &&
             !RotatesFrame(plan.aggregation)) {
    outer.learning_rate = RateForTrellis(plan);
  } else if (name.empty() && !aggregation.has_server_learning_rate() &&
             !aggregation.has_server_momentum() && TrainsOneFactor(plan.aggregation)) {
    outer.kind = OuterOptimizerKind::kNesterov;
    outer.beta1 = 0.5;
  }
  if (aggregation.has_server_learning_rate()) {
    outer.learning_rate = aggregation.server_learning_rate();
  }
  constexpr absl::string_view kRate = "run.aggregation.server_learning_rate";
  limits.AtMost(kRate, limits.Above(kRate, outer.learning_rate, 0.0), 10.0);
  limits.Within("run.aggregation.server_momentum", outer.beta1, 0.0, 0.999);
  if (aggregation.has_server_beta2()) outer.beta2 = aggregation.server_beta2();
  limits.Within("run.aggregation.server_beta2", outer.beta2, 0.0, 0.99999);
  if (aggregation.has_server_epsilon()) outer.epsilon = aggregation.server_epsilon();
  limits.Within("run.aggregation.server_epsilon", outer.epsilon, 1e-9, 1.0);
  if (RotatesFrame(plan.aggregation) &&
      (outer.kind != OuterOptimizerKind::kSgd || outer.learning_rate != 1)) {
    limits.Fail(absl::StrCat("run.aggregation: mode ", aggregation.mode(),
                             " makes new factors each round, which an outer optimizer cannot "
                             "follow; use sgd with a server_learning_rate of 1"));
  }
}

void FillNodeRanks(const v1::LoraConfig& lora, Limits& limits, RunPlan& plan) {
  constexpr absl::string_view kField = "run.lora.node_ranks";
  limits.AtMost(absl::StrCat(kField, " entries"), lora.node_ranks_size(), kMaxNodeRanks);
  double shares = 0;
  for (const v1::NodeRankConfig& from : lora.node_ranks()) {
    const std::string item = absl::StrCat(kField, "[", plan.node_ranks.size(), "]");
    NodeRank& rule = plan.node_ranks.emplace_back();
    rule.rank = limits.Within<int64_t>(absl::StrCat(item, ".rank"), from.rank(), 1,
                                       std::max<int64_t>(TrainedRank(plan), 1));
    rule.below_memory_bytes = from.below_memory_bytes();
    rule.share = limits.Within(absl::StrCat(item, ".share"), from.share(), 0.0, 1.0);
    shares += rule.share;
    if ((rule.share > 0) == (rule.below_memory_bytes > 0)) {
      limits.Fail(
          absl::StrCat(item, ": rank ", rule.rank, " needs either a share or below_memory_bytes"));
    }
  }
  limits.AtMost(absl::StrCat(kField, ": the sum of shares"), shares, 1.0 + 1e-9);
  if (!plan.node_ranks.empty() && plan.components_per_round > 0) {
    limits.Fail(absl::StrCat(kField, ": cannot be combined with components_per_round"));
  }
}

void FillAggregation(const v1::AggregationConfig& aggregation, Limits& limits, RunPlan& plan) {
  FillMode(aggregation, limits, plan);
  FillOuterOptimizer(aggregation, limits, plan);
  // What was not sent belongs to coordinates that are gone in the next round.
  if (RotatesFrame(plan.aggregation)) plan.error_feedback = false;
  if (plan.feedback.momentum > 0 && !plan.error_feedback) {
    limits.Fail(
        "run.codec.momentum_correction: needs error feedback, which no_error_feedback, dense fp16 "
        "values or a mode that rotates the adapter's frame turn off; use "
        "run.aggregation.server_momentum");
  }
  FillRobust(aggregation, plan, limits, plan.robust);
  // A full cohort of the heaviest nodes must fit the sum: which update is refused may not depend on
  // the order of arrivals. (With so many updates of earlier rounds that it does not, the last ones
  // are refused.)
  const uint64_t heaviest =
      std::min(kMaxUpdateWeight,
               kMaxTotalWeight / static_cast<uint64_t>(std::max<int64_t>(plan.nodes_per_round, 1)));
  plan.max_examples_per_node = std::min<uint64_t>(plan.max_examples_per_node, heaviest);
  if (aggregation.has_max_examples_per_node()) {
    plan.max_examples_per_node = aggregation.max_examples_per_node();
  }
  limits.Within<uint64_t>("run.aggregation.max_examples_per_node", plan.max_examples_per_node, 1,
                          heaviest);
}

}  // namespace

int64_t TrainedRank(const RunPlan& plan) {
  int64_t rank = 0;
  for (const LoraModule& module : plan.lora.modules()) rank = std::max(rank, module.rank);
  return std::min(rank, plan.trained_rank);
}

absl::string_view AggregationModeName(AggregationMode mode) {
  for (const Mode& known : kModes) {
    if (known.mode == mode) return known.name;
  }
  FEDGE_CHECK(false, "aggregation mode ", static_cast<int>(mode));
}

bool Decomposes(AggregationMode mode) {
  return mode == AggregationMode::kFlexLora || mode == AggregationMode::kFedEx ||
         mode == AggregationMode::kFlora;
}

bool RotatesFrame(AggregationMode mode) {
  return mode == AggregationMode::kFlexLora || mode == AggregationMode::kFlora;
}

absl::StatusOr<LoraPlan> MakeLoraPlan(const v1::RunConfig& config) {
  LoraPlan plan;
  LoraTargets& targets = plan.targets;
  Limits limits;
  const v1::LoraConfig& lora = config.lora();
  targets.rank = lora.has_rank() ? lora.rank() : 8;
  limits.Within<int64_t>("run.lora.rank", targets.rank, 1, kMaxLoraRank);
  targets.alpha = lora.has_alpha() ? lora.alpha() : 2 * static_cast<float>(targets.rank);
  limits.AtMost("run.lora.alpha", limits.Above("run.lora.alpha", targets.alpha, 0.0f), 1e6f);
  if (lora.target_modules_size() > 0) {
    targets.modules.assign(lora.target_modules().begin(), lora.target_modules().end());
  }
  plan.trained_rank = targets.rank;
  const std::string& mode = config.aggregation().mode();
  const bool has_correction = mode == "fedex" || mode == "flora";
  constexpr absl::string_view kCorrection = "run.aggregation.correction_rank";
  if (has_correction) {
    const int64_t more = config.aggregation().has_correction_rank()
                             ? config.aggregation().correction_rank()
                             : targets.rank;
    limits.Within<int64_t>(kCorrection, more, 1, kMaxLoraRank - targets.rank);
    targets.rank += more;
  } else if (config.aggregation().has_correction_rank()) {
    limits.Fail(absl::StrCat(kCorrection, ": only modes fedex and flora have one"));
  }
  RETURN_IF_ERROR(limits.status());
  if (lora.has_layers()) {
    const absl::Status layers = ParseLayerRange(lora.layers(), targets);
    if (!layers.ok()) return Annotate(layers, "run.lora.layers");
  }
  const auto trained = static_cast<float>(plan.trained_rank);
  if (lora.rslora()) targets.alpha *= std::sqrt(trained);
  targets.alpha *= static_cast<float>(targets.rank) / trained;
  return plan;
}

absl::StatusOr<RunPlan> MakeRunPlan(const v1::ServerConfig& config, LoraSpec lora,
                                    const Digest& base_model) {
  ASSIGN_OR_RETURN(const LoraPlan lora_plan, MakeLoraPlan(config.run()));
  RunPlan plan;
  plan.lora = std::move(lora);
  if (lora_plan.trained_rank < lora_plan.targets.rank) plan.trained_rank = lora_plan.trained_rank;
  plan.base_model = base_model;
  if (config.run().lora().has_init()) plan.init.kind = config.run().lora().init();
  plan.init.unquantized = config.run().lora().init_from();
  const absl::Status init = CheckAdapterInit(plan.init);
  if (!init.ok()) return Annotate(init, "run.lora.init");
  Limits limits;
  FillRounds(config.run(), limits, plan);
  FillTraining(config.run().training(), limits, plan);
  FillCodec(config.run().codec(), limits, plan);
  FillDownlink(config.run().downlink(), limits, plan);
  FillAggregation(config.run().aggregation(), limits, plan);
  FillAdmission(config.run().admission(), limits, plan.admission);
  FillGate(config.run().gate(), !config.holdout().empty(), limits, plan.gate);
  // Changes between versions that have little to do with each other are no smaller than versions.
  if (!config.run().downlink().has_encoding() && RotatesFrame(plan.aggregation)) {
    plan.downlink.encoding = DownlinkEncoding::kFp16;
  }
  FillNodeRanks(config.run().lora(), limits, plan);
  const double retry = config.has_retry_seconds() ? config.retry_seconds() : 5;
  limits.Within("retry_seconds", retry, 0.001, 86400.0);
  plan.retry = absl::Seconds(retry);
  FillPace(config.run(), limits, plan);
  if (config.has_keep_versions()) {
    limits.Within<uint32_t>("keep_versions", config.keep_versions(), 2, 1'000'000);
  }
  RETURN_IF_ERROR(limits.status());
  EncodeOptions widest = plan.codec;
  widest.density = CodecDensity(plan, 0);
  plan.max_update_bytes =
      EncodedSizeBound(static_cast<uint64_t>(plan.lora.num_parameters()), widest);
  if (config.has_max_update_bytes()) {
    limits.AtLeast<uint64_t>("max_update_bytes", config.max_update_bytes(), 1024);
    plan.max_update_bytes = std::min<uint64_t>(plan.max_update_bytes, config.max_update_bytes());
  }
  RETURN_IF_ERROR(limits.status());
  return plan;
}

uint64_t AdapterSeed(const RunPlan& plan) { return Rng::Stream(plan.seed, "adapter").Next(); }

}  // namespace fedge
