#include "tests/quality/methods.h"

#include <algorithm>

namespace fedge {

const std::vector<StudyMethod>& StudyMethods() {
  static const auto* const methods = new std::vector<StudyMethod>{
      {kReferenceMethod, "{codec: {support: dense}, downlink: {encoding: exact}}"},
      {"top0.5-1bit-up",
       "{codec: {density: 0.005, value_bits: 1, residual_norm_ratio: 0}, downlink: {encoding: "
       "exact}}"},
      {"top0.5-2bit-up",
       "{codec: {density: 0.005, value_bits: 2, residual_norm_ratio: 0}, downlink: {encoding: "
       "exact}}"},
      {"top0.5-4bit-up",
       "{codec: {density: 0.005, value_bits: 4, residual_norm_ratio: 0}, downlink: {encoding: "
       "exact}}"},
      {"top1-1bit-up",
       "{codec: {density: 0.01, value_bits: 1, residual_norm_ratio: 0}, downlink: {encoding: "
       "exact}}"},
      {"top1-2bit-up",
       "{codec: {density: 0.01, value_bits: 2, residual_norm_ratio: 0}, downlink: {encoding: "
       "exact}}"},
      {"top1-4bit-up",
       "{codec: {density: 0.01, value_bits: 4, residual_norm_ratio: 0}, downlink: {encoding: "
       "exact}}"},
      {"top3-1bit-up",
       "{codec: {density: 0.03, value_bits: 1, residual_norm_ratio: 0}, downlink: {encoding: "
       "exact}}"},
      {"top3-2bit-up",
       "{codec: {density: 0.03, value_bits: 2, residual_norm_ratio: 0}, downlink: {encoding: "
       "exact}}"},
      {"top3-4bit-up",
       "{codec: {density: 0.03, value_bits: 4, residual_norm_ratio: 0}, downlink: {encoding: "
       "exact}}"},
      {"top10-1bit-up",
       "{codec: {density: 0.1, value_bits: 1, residual_norm_ratio: 0}, downlink: {encoding: "
       "exact}}"},
      {"top10-2bit-up",
       "{codec: {density: 0.1, value_bits: 2, residual_norm_ratio: 0}, downlink: {encoding: "
       "exact}}"},
      {"top10-4bit-up",
       "{codec: {density: 0.1, value_bits: 4, residual_norm_ratio: 0}, downlink: {encoding: "
       "exact}}"},
      {"dense-1bit-up", "{codec: {support: dense, value_bits: 1}, downlink: {encoding: exact}}"},
      {"dense-2bit-up", "{codec: {support: dense, value_bits: 2}, downlink: {encoding: exact}}"},
      {"rolora-fp32",
       "{codec: {support: dense}, downlink: {encoding: exact}, aggregation: {mode: rolora}}"},
      {"ffa-fp32",
       "{codec: {support: dense}, downlink: {encoding: exact}, aggregation: {mode: ffa}}"},
      {"flexlora-fp32",
       "{codec: {support: dense}, downlink: {encoding: exact}, aggregation: {mode: flexlora}}"},
      {"fedex-fp32",
       "{codec: {support: dense}, downlink: {encoding: exact}, aggregation: {mode: fedex}}"},
      {"flora-fp32",
       "{codec: {support: dense}, downlink: {encoding: exact}, aggregation: {mode: flora}}"},
      {"top3-1bit-down0.25",
       "{codec: {density: 0.03, value_bits: 1, residual_norm_ratio: 0}, downlink: "
       "{bits_per_parameter: 0.25}}"},
      {"top3-1bit-down0.15",
       "{codec: {density: 0.03, value_bits: 1, residual_norm_ratio: 0}, downlink: "
       "{bits_per_parameter: 0.15}}"},
      {"top1-1bit-down0.15",
       "{codec: {density: 0.01, value_bits: 1, residual_norm_ratio: 0}, downlink: "
       "{bits_per_parameter: 0.15}}"},
      {"top1-1bit-down0.1",
       "{codec: {density: 0.01, value_bits: 1, residual_norm_ratio: 0}, downlink: "
       "{bits_per_parameter: 0.1}}"},
      {"top10-1bit-down0.5",
       "{codec: {density: 0.1, value_bits: 1, residual_norm_ratio: 0}, downlink: "
       "{bits_per_parameter: 0.5}}"},
      {"trellis0.125-up",
       "{codec: {support: trellis, bits_per_parameter: 0.125, residual_decay: 0.5}, downlink: "
       "{encoding: exact}, aggregation: {server_learning_rate: 2.2}}"},
      {"trellis0.25-down0.25",
       "{codec: {support: trellis, bits_per_parameter: 0.25, residual_decay: 0.5}, downlink: "
       "{coding: trellis, bits_per_parameter: 0.25, relaxation: 1.3}, aggregation: "
       "{server_learning_rate: 1.6}}"},
      {"trellis0.125-down0.25",
       "{codec: {support: trellis, bits_per_parameter: 0.125, residual_decay: 0.5}, downlink: "
       "{coding: trellis, bits_per_parameter: 0.25, relaxation: 1.3}, aggregation: "
       "{server_learning_rate: 2.2}}"},
  };
  return *methods;
}

StudyMethod FindMethod(const std::string& name) {
  for (const StudyMethod& method : StudyMethods()) {
    if (method.name == name) return method;
  }
  return {name, "{}"};
}

}  // namespace fedge
