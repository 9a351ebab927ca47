#include "tests/quality/methods.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"

namespace fedge {

namespace {

// A hundred times fewer bytes both ways: docs/quality.md.
constexpr absl::string_view kTrellis =
    "codec: {support: trellis, bits_per_parameter: 0.125, residual_decay: 0.5}, downlink: {coding: "
    "trellis, bits_per_parameter: 0.25, relaxation: 1.3}, training: {learning_rate: 0.015}, "
    "aggregation: {server_learning_rate: 2.2}";

// top-k at all densities (in per cent) and widths; devices get whole versions.
std::vector<StudyMethod> TopKGrid() {
  std::vector<StudyMethod> grid;
  for (const double percent : {0.5, 1.0, 3.0, 10.0}) {
    for (const int bits : {1, 2, 4}) {
      grid.push_back({absl::StrCat("top", percent, "-", bits, "bit-up"),
                      absl::StrCat("{codec: {density: ", percent / 100, ", value_bits: ", bits,
                                   ", residual_norm_ratio: 0}, downlink: {encoding: exact}}"),
                      absl::StrCat("top-k, ", bits, bits == 1 ? " bit" : " bits")});
    }
  }
  return grid;
}

}  // namespace

const std::vector<StudyMethod>& StudyMethods() {
  static const auto* const methods = [] {
    auto* all = new std::vector<StudyMethod>{
        {kReferenceMethod, "{codec: {support: dense}, downlink: {encoding: exact}}", "dense"},
        {"dense-1bit-up", "{codec: {support: dense, value_bits: 1}, downlink: {encoding: exact}}",
         "dense"},
        {"dense-2bit-up", "{codec: {support: dense, value_bits: 2}, downlink: {encoding: exact}}",
         "dense"},
        {"rolora-fp32",
         "{codec: {support: dense}, downlink: {encoding: exact}, aggregation: {mode: rolora}}",
         "modes, fp32"},
        {"ffa-fp32",
         "{codec: {support: dense}, downlink: {encoding: exact}, aggregation: {mode: ffa}}",
         "modes, fp32"},
        {"flexlora-fp32",
         "{codec: {support: dense}, downlink: {encoding: exact}, aggregation: {mode: flexlora}}",
         "modes, fp32"},
        {"fedex-fp32",
         "{codec: {support: dense}, downlink: {encoding: exact}, aggregation: {mode: fedex}}",
         "modes, fp32"},
        {"flora-fp32",
         "{codec: {support: dense}, downlink: {encoding: exact}, aggregation: {mode: flora}}",
         "modes, fp32"},
        {"dense-fp32-rate0.015",
         "{codec: {support: dense}, downlink: {encoding: exact}, "
         "training: {learning_rate: 0.015}}",
         "longer steps, fp32"},
        {"dense-fp32-lr1.5",
         "{codec: {support: dense}, downlink: {encoding: exact}, "
         "aggregation: {server_learning_rate: 1.5}}",
         "longer steps, fp32"},
        {"dense-fp32-nesterov",
         "{codec: {support: dense}, downlink: {encoding: exact}, "
         "aggregation: {optimizer: nesterov}}",
         "longer steps, fp32"},
        {"rolora-fp32-lr2",
         "{codec: {support: dense}, downlink: {encoding: exact}, "
         "aggregation: {mode: rolora, server_learning_rate: 2}}",
         "longer steps, fp32"},
        {"rolora-fp32-nesterov",
         "{codec: {support: dense}, downlink: {encoding: exact}, "
         "aggregation: {mode: rolora, optimizer: nesterov}}",
         "longer steps, fp32"},
        {"ffa-fp32-lr2",
         "{codec: {support: dense}, downlink: {encoding: exact}, "
         "aggregation: {mode: ffa, server_learning_rate: 2}}",
         "longer steps, fp32"},
        {"ffa-fp32-nesterov",
         "{codec: {support: dense}, downlink: {encoding: exact}, "
         "aggregation: {mode: ffa, optimizer: nesterov}}",
         "longer steps, fp32"},
        {"default", "{}", "the product's defaults"},
        {"top3-1bit-down0.25",
         "{codec: {density: 0.03, value_bits: 1, residual_norm_ratio: 0}, downlink: "
         "{bits_per_parameter: 0.25}}",
         "top-k, both ways"},
        {"top3-1bit-down0.15",
         "{codec: {density: 0.03, value_bits: 1, residual_norm_ratio: 0}, downlink: "
         "{bits_per_parameter: 0.15}}",
         "top-k, both ways"},
        {"top1-1bit-down0.15",
         "{codec: {density: 0.01, value_bits: 1, residual_norm_ratio: 0}, downlink: "
         "{bits_per_parameter: 0.15}}",
         "top-k, both ways"},
        {"top1-1bit-down0.1",
         "{codec: {density: 0.01, value_bits: 1, residual_norm_ratio: 0}, downlink: "
         "{bits_per_parameter: 0.1}}",
         "top-k, both ways"},
        {"top10-1bit-down0.5",
         "{codec: {density: 0.1, value_bits: 1, residual_norm_ratio: 0}, downlink: "
         "{bits_per_parameter: 0.5}}",
         "top-k, both ways"},
        {"trellis0.125-up",
         "{codec: {support: trellis, bits_per_parameter: 0.125, residual_decay: 0.5}, downlink: "
         "{encoding: exact}, aggregation: {server_learning_rate: 2.2}}",
         "trellis"},
        {"trellis0.25-down0.25",
         "{codec: {support: trellis, bits_per_parameter: 0.25, residual_decay: 0.5}, downlink: "
         "{coding: trellis, bits_per_parameter: 0.25, relaxation: 1.3}, aggregation: "
         "{server_learning_rate: 1.6}}",
         "trellis, both ways"},
        {"trellis0.125-down0.25", absl::StrCat("{", kTrellis, "}"), "trellis, both ways"},
        // at the reference's learning rate
        {"trellis0.125-down0.25-rate0.01",
         absl::StrCat("{", absl::StrReplaceAll(kTrellis, {{"0.015", "0.01"}}), "}"),
         "trellis, both ways"},
        // a quarter longer than a reference of 24 rounds
        {"trellis0.125-down0.25-30rounds", absl::StrCat("{rounds: 30, ", kTrellis, "}"),
         "trellis, both ways"},
    };
    const std::vector<StudyMethod> grid = TopKGrid();
    all->insert(all->begin() + 1, grid.begin(), grid.end());  // after the reference
    return all;
  }();
  return *methods;
}

StudyMethod FindMethod(const std::string& name) {
  for (const StudyMethod& method : StudyMethods()) {
    if (method.name == name) return method;
  }
  return {name, "{}", "others"};
}

}  // namespace fedge
