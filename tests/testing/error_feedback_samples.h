// Error feedback in a flat adapter, as its tests use it: one call each to make it, to prepare an
// update and to see what the update carries.
#ifndef FEDGE_TESTS_TESTING_ERROR_FEEDBACK_SAMPLES_H_
#define FEDGE_TESTS_TESTING_ERROR_FEEDBACK_SAMPLES_H_

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/codec/error_feedback.h"
#include "tests/testing/update_samples.h"

namespace fedge::testing {

inline constexpr EncodeOptions kTopTenth = {
    .support = UpdateSupport::kTopK, .density = 0.1, .value_bits = 8};

// No rule but the two phases.
inline constexpr ErrorFeedbackOptions kNoRules = {.full_rounds = 0, .max_norm_ratio = 0};

inline ErrorFeedback Fresh(size_t size, const ErrorFeedbackOptions& options = kNoRules,
                           uint64_t frame = 0) {
  return ErrorFeedback(FlatSpec(size), Sha256Of("base model"), frame, options);
}

inline UpdateHeader HeaderOf(const LoraSpec& spec, uint64_t round = 7) {
  UpdateHeader header = SampleHeader();
  header.layout_hash = spec.layout_hash();
  header.round = round;
  return header;
}

inline std::string Prepare(ErrorFeedback& feedback, const std::vector<float>& delta,
                           const EncodeOptions& options = kTopTenth, uint64_t round = 7) {
  auto bytes = feedback.Prepare(delta, FlatLayout(delta.size()),
                                HeaderOf(FlatSpec(delta.size()), round), options);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *std::move(bytes) : std::string();
}

inline std::vector<float> Decode(const std::string& bytes, size_t size) {
  const SliceLayout layout = FlatLayout(size);
  auto decoded = DecodeUpdate(bytes, FlatSpec(size).layout_hash(), layout);
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  return decoded.ok() ? Flat(*decoded, layout) : std::vector<float>(size);
}

inline std::vector<float> ResidualOf(const ErrorFeedback& feedback) {
  return std::vector<float>(feedback.residual().begin(), feedback.residual().end());
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_ERROR_FEEDBACK_SAMPLES_H_
