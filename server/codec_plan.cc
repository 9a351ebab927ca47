#include "server/codec_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "fedge/v1/config.pb.h"
#include "server/run_plan.h"

namespace fedge {
namespace {

struct LinkClass {
  absl::string_view name;
  uint64_t budget_bytes;  // of an update: some minutes of a usual line's time
};
constexpr LinkClass kLinkClasses[] = {{"lora-radio", 4000},
                                      {"nb-iot", 24'000},
                                      {"lte-m", 100'000},
                                      {"3g", 400'000},
                                      {"wifi", 4'000'000}};

void FillBudget(const v1::CodecConfig& codec, Limits& limits, RunPlan& plan) {
  const int given = codec.has_budget_bytes() + codec.has_budget_bytes_per_day() + codec.has_link();
  if (given == 0) return;
  uint64_t& budget = plan.codec.budget_bytes;
  if (given > 1) {
    limits.Fail("run.codec: give one of budget_bytes, budget_bytes_per_day and link");
  }
  if (plan.codec.support == UpdateSupport::kDense) {
    limits.Fail("run.codec: a budget needs top-k, trellis or seeded, dense sends every value");
  }
  budget = codec.budget_bytes();
  if (codec.has_budget_bytes_per_day()) {
    const double rounds = absl::FDivDuration(absl::Hours(24), plan.round_deadline);
    budget = static_cast<uint64_t>(static_cast<double>(codec.budget_bytes_per_day()) /
                                   std::max(rounds, 1.0));
  }
  for (const LinkClass& link : kLinkClasses) {
    if (codec.link() == link.name) budget = link.budget_bytes;
  }
  if (codec.has_link() && budget == 0) {
    limits.Fail(absl::StrCat("run.codec.link: '", codec.link(),
                             "' is not known; use lora-radio, nb-iot, lte-m, 3g or wifi"));
  }
  limits.AtLeast<uint64_t>("run.codec: a budget of bytes a round", budget, 256);
}

void FillTrellis(const v1::CodecConfig& codec, Limits& limits, RunPlan& plan) {
  plan.codec.density = codec.has_bits_per_parameter() ? codec.bits_per_parameter() : 0.125;
  limits.Within("run.codec.bits_per_parameter", plan.codec.density, kLeastTrellisBits, 1.0);
  plan.codec.relaxation =
      codec.has_relaxation() ? codec.relaxation() : (codec.no_error_feedback() ? 1.0 : 1.6);
  limits.Within("run.codec.relaxation", plan.codec.relaxation, 0.01, 1.99);
  if (codec.has_density() || codec.has_value_bits() || codec.stochastic()) {
    limits.Fail(
        "run.codec: density, value_bits and stochastic are not for a trellis; use "
        "bits_per_parameter");
  }
}

}  // namespace

void FillCodec(const v1::CodecConfig& codec, Limits& limits, RunPlan& plan) {
  if (codec.has_support()) {
    if (codec.support() == "dense") {
      plan.codec.support = UpdateSupport::kDense;
    } else if (codec.support() == "seeded") {
      plan.codec.support = UpdateSupport::kSeeded;
    } else if (codec.support() == "trellis") {
      plan.codec.support = UpdateSupport::kTrellis;
    } else if (codec.support() != "top-k") {
      limits.Fail(absl::StrCat("run.codec.support: '", codec.support(),
                               "' is not known; use top-k, trellis, seeded or dense"));
    }
  }
  const bool dense = plan.codec.support == UpdateSupport::kDense;
  const bool trellis = plan.codec.support == UpdateSupport::kTrellis;
  if (codec.has_density()) plan.codec.density = codec.density();
  if (trellis) FillTrellis(codec, limits, plan);
  limits.AtMost("run.codec.density", limits.Above("run.codec.density", plan.codec.density, 0.0),
                1.0);
  const uint32_t bits = codec.has_value_bits() ? codec.value_bits() : (dense ? 16 : 2);
  if (bits == 0 || bits > 16 || (bits > 4 && bits % 8 != 0)) {
    limits.Fail(absl::StrCat("run.codec.value_bits: ", bits, " is none of 1, 2, 3, 4, 8, 16"));
  }
  plan.codec.value_bits = static_cast<int>(bits);
  plan.codec.per_run = codec.per_run();
  plan.codec.stochastic = codec.stochastic();
  plan.shared_support = codec.shared_support();
  plan.warmup_rounds = codec.warmup_rounds();
  limits.AtMost<int64_t>("run.codec.warmup_rounds", plan.warmup_rounds, 1'000'000);
  if (codec.has_residual_rounds()) plan.feedback.full_rounds = codec.residual_rounds();
  if (codec.has_residual_norm_ratio()) {
    plan.feedback.max_norm_ratio = codec.residual_norm_ratio();
  }
  limits.Within("run.codec.residual_norm_ratio", plan.feedback.max_norm_ratio, 0.0, 1e9);
  if (codec.has_residual_decay()) {
    plan.feedback.decay = codec.residual_decay();
  } else if (trellis) {
    plan.feedback.decay = 0.5;
  }
  limits.Within("run.codec.residual_decay", plan.feedback.decay, 0.0, 1.0);
  FillBudget(codec, limits, plan);
  const bool complete = dense && bits == 16;  // nothing is left out, so nothing is kept
  plan.error_feedback = !complete && !codec.no_error_feedback();
  if (plan.codec.stochastic && plan.error_feedback) {
    limits.Fail(
        "run.codec.stochastic: needs no_error_feedback; error feedback makes up for what "
        "the nearest value loses");
  }
  plan.feedback.momentum = codec.momentum_correction();
  limits.Within("run.codec.momentum_correction", plan.feedback.momentum, 0.0, 0.99);
}

void FillDownlink(const v1::DownlinkConfig& downlink, Limits& limits, RunPlan& plan) {
  DownlinkPlan& to = plan.downlink;
  if (downlink.has_encoding()) {
    if (downlink.encoding() == "fp16") {
      to.encoding = DownlinkEncoding::kFp16;
    } else if (downlink.encoding() == "exact") {
      to.encoding = DownlinkEncoding::kExact;
    } else if (downlink.encoding() != "delta") {
      limits.Fail(absl::StrCat("run.downlink.encoding: '", downlink.encoding(),
                               "' is not known; use delta, fp16 or exact"));
    }
  }
  if (downlink.has_bits_per_parameter()) to.bits_per_parameter = downlink.bits_per_parameter();
  constexpr absl::string_view kBits = "run.downlink.bits_per_parameter";
  limits.AtMost(kBits, limits.Above(kBits, to.bits_per_parameter, 0.0), 32.0);
  if (downlink.has_density()) {
    to.density = downlink.density();
    constexpr absl::string_view kDensity = "run.downlink.density";
    limits.AtMost(kDensity, limits.Above(kDensity, to.density, 0.0), 1.0);
    if (downlink.has_bits_per_parameter()) {
      limits.Fail("run.downlink: give bits_per_parameter or density, not both");
    }
  }
  if (downlink.has_coding() && downlink.coding() != "levels" && downlink.coding() != "trellis") {
    limits.Fail(absl::StrCat("run.downlink.coding: '", downlink.coding(),
                             "' is not known; use levels or trellis"));
  }
  const bool for_levels = downlink.has_density() || downlink.has_levels() ||
                          (downlink.has_bits_per_parameter() && to.bits_per_parameter > 1);
  to.trellis = downlink.has_coding() ? downlink.coding() == "trellis"
                                     : plan.codec.support == UpdateSupport::kTrellis && !for_levels;
  if (to.trellis) {
    to.relaxation = 1.3;
    if (!downlink.has_bits_per_parameter()) to.bits_per_parameter = 0.25;
    limits.Within(kBits, to.bits_per_parameter, kLeastTrellisBits, 1.0);
    if (downlink.has_density() || downlink.has_levels()) {
      limits.Fail("run.downlink: density and levels are not for a trellis; use bits_per_parameter");
    }
  }
  if (downlink.has_relaxation()) to.relaxation = downlink.relaxation();
  limits.Within("run.downlink.relaxation", to.relaxation, 0.01, 1.99);
  if (downlink.has_levels()) {
    limits.Within<uint32_t>("run.downlink.levels", downlink.levels(), 1, 1024);
    to.levels = static_cast<int>(downlink.levels());
  }
}

}  // namespace fedge
