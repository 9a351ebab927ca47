#include "server/trust_plan.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "fedge/v1/config.pb.h"
#include "server/run_plan.h"

namespace fedge {
namespace {

struct Rule {
  absl::string_view name;
  RobustRule rule;
};
constexpr Rule kRules[] = {{"none", RobustRule::kNone},
                           {"median", RobustRule::kMedian},
                           {"trimmed-mean", RobustRule::kTrimmedMean},
                           {"multi-krum", RobustRule::kMultiKrum},
                           {"geometric-median", RobustRule::kGeometricMedian}};

// Distances of all pairs: their number and time grow with the square.
constexpr int64_t kMaxPairwiseNodes = 1000;
// Of the nodes that send a coordinate; with fewer, its median is 0 whatever they send.
constexpr double kMinCoordinateShare = 0.5;

void CheckCoordinateRule(const RunPlan& plan, absl::string_view field, Limits& limits,
                         const RobustPlan& robust) {
  const absl::string_view rule = RobustRuleName(robust.rule);
  if (Decomposes(plan.aggregation)) {
    limits.Fail(absl::StrCat(field, ": ", rule, " gives each coordinate a value, but mode ",
                             AggregationModeName(plan.aggregation),
                             " needs means of products; use multi-krum or geometric-median"));
  }
  if (plan.coordinate_mean) {
    limits.Fail(absl::StrCat(field,
                             ": with coordinate_mean one node alone decides a coordinate "
                             "that no other sent; switch it off"));
  }
  const bool shared = plan.codec.support == UpdateSupport::kDense || plan.shared_support;
  const bool sparse = plan.codec.budget_bytes > 0 || plan.codec.density < kMinCoordinateShare;
  if (!shared && sparse) {
    limits.Fail(absl::StrCat(
        field, ": ", rule,
        " is 0 where fewer than half of the nodes send a value; set "
        "run.codec.support to dense or to seeded with shared_support, or use multi-krum or "
        "geometric-median"));
  }
}

void CheckPairwiseRule(const RunPlan& plan, absl::string_view field, Limits& limits,
                       const RobustPlan& robust) {
  const absl::string_view rule = RobustRuleName(robust.rule);
  if (plan.nodes_per_round > kMaxPairwiseNodes) {
    limits.Fail(absl::StrCat(field, ": ", rule, " compares all pairs of at most ",
                             kMaxPairwiseNodes, " updates, run.nodes_per_round is ",
                             plan.nodes_per_round));
  }
  if (robust.rule != RobustRule::kMultiKrum) return;
  const int64_t attackers = ShareOf(robust.attackers, plan.nodes_per_round);
  const int64_t needed = 2 * attackers + 3;
  if (plan.nodes_per_round < needed) {
    limits.Fail(absl::StrCat(field, ": multi-krum against ", attackers, " attackers needs ", needed,
                             " nodes, run.nodes_per_round is ", plan.nodes_per_round,
                             "; lower robust_attackers or draw more"));
  }
  limits.AtMost("run.aggregation.robust_keep", robust.keep, plan.nodes_per_round - attackers);
}

}  // namespace

absl::string_view RobustRuleName(RobustRule rule) {
  for (const Rule& known : kRules) {
    if (known.rule == rule) return known.name;
  }
  FEDGE_CHECK(false, "robust rule ", static_cast<int>(rule));
}

bool WeighsUpdates(RobustRule rule) {
  return rule == RobustRule::kMultiKrum || rule == RobustRule::kGeometricMedian;
}

int64_t ShareOf(double share, int64_t count) {
  return static_cast<int64_t>(std::ceil(share * static_cast<double>(count) - 1e-9));
}

void FillAdmission(const v1::AdmissionConfig& config, Limits& limits, AdmissionPlan& admission) {
  if (config.norm_bound() == "off") {
    admission.norm_bound = NormBound::kOff;
  } else if (config.norm_bound() == "reject") {
    admission.norm_bound = NormBound::kReject;
  } else if (config.has_norm_bound() && config.norm_bound() != "clip") {
    limits.Fail(absl::StrCat("run.admission.norm_bound: '", config.norm_bound(),
                             "' is not known; use off, clip or reject"));
  }
  if (config.has_max_norm()) {
    admission.max_norm = limits.Above("run.admission.max_norm", config.max_norm(), 0.0);
    if (config.has_norm_ratio()) {
      limits.Fail("run.admission: give max_norm or norm_ratio, not both");
    }
  }
  if (config.has_norm_ratio()) admission.norm_ratio = config.norm_ratio();
  limits.Within("run.admission.norm_ratio", admission.norm_ratio, 1.0, 1e6);
  if (config.has_quarantine_after()) admission.quarantine_after = config.quarantine_after();
  limits.AtMost<int64_t>("run.admission.quarantine_after", admission.quarantine_after, 1'000'000);
  if (config.has_quarantine_rounds()) admission.quarantine_rounds = config.quarantine_rounds();
  limits.Within<int64_t>("run.admission.quarantine_rounds", admission.quarantine_rounds, 1,
                         1'000'000);
  NodeQuotaLimits& quota = admission.quota;
  if (config.has_max_requests_per_minute()) {
    quota.requests_per_minute = config.max_requests_per_minute();
  }
  quota.upload_bytes_per_day = config.max_upload_bytes_per_day();
  if (config.has_max_open_streams()) quota.open_streams = config.max_open_streams();
}

void FillRobust(const v1::AggregationConfig& config, const RunPlan& plan, Limits& limits,
                RobustPlan& robust) {
  constexpr absl::string_view kField = "run.aggregation.robust";
  if (config.has_robust()) {
    const auto named = std::find_if(std::begin(kRules), std::end(kRules),
                                    [&](const Rule& rule) { return rule.name == config.robust(); });
    if (named == std::end(kRules)) {
      limits.Fail(absl::StrCat(kField, ": '", config.robust(),
                               "' is not known; use none, median, trimmed-mean, multi-krum or "
                               "geometric-median"));
    } else {
      robust.rule = named->rule;
    }
  }
  if (config.has_robust_attackers()) robust.attackers = config.robust_attackers();
  limits.Within("run.aggregation.robust_attackers", robust.attackers, 0.0, 0.499);
  robust.keep = config.robust_keep();
  if (robust.rule == RobustRule::kNone) return;
  if (WeighsUpdates(robust.rule)) {
    CheckPairwiseRule(plan, kField, limits, robust);
  } else {
    CheckCoordinateRule(plan, kField, limits, robust);
  }
}

}  // namespace fedge
