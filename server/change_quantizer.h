// What of a change of the adapter is sent to the devices: the largest magnitudes, rounded to
// multiples of a power-of-two step. What is left out stays with the server (server/downlink.h).
//
// A power of two, and one step for all coordinates: sums of changes are small multiples again, so
// that merged deltas stay small, and with entropy coding one step everywhere has the least squared
// error for its bits (reverse water-filling; Cover, Thomas, section 10.3).
#ifndef FEDGE_SERVER_CHANGE_QUANTIZER_H_
#define FEDGE_SERVER_CHANGE_QUANTIZER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace fedge {

// Multiples of 2^exponent of all magnitudes from `threshold` on; all in adapter units.
struct ChangeStep {
  int exponent = 0;
  float threshold = 0.5f;
  double estimated_bits = 0;  // of all coordinates, were they independent
  double squared_error = 0;   // that remains, estimated
};

inline constexpr int kMaxStepExponent = 20;

// Magnitudes of a change as a histogram: 256 bins an octave.
class ChangeHistogram {
 public:
  // `change`: finite, in adapter units.
  explicit ChangeHistogram(absl::Span<const float> change);

  // The step and threshold with the least squared error that need at most `bits` in all.
  ChangeStep ForBudget(double bits) const;
  // The `density * size` largest; the step is the largest power of two not above the threshold
  // divided by `levels`.
  ChangeStep ForDensity(double density, int levels) const;

 private:
  struct Bin {
    double magnitude = 0;  // the mean of its values
    double count = 0;
  };
  ChangeStep BestThreshold(int exponent, double bits) const;

  std::vector<Bin> bins_;  // largest first, without empty ones
  double size_ = 0;
  double energy_ = 0;
};

// change[i] -> the multiple of the step nearest to it, 0 below the threshold.
std::vector<int32_t> QuantizeChange(absl::Span<const float> change, const ChangeStep& step);

}  // namespace fedge

#endif  // FEDGE_SERVER_CHANGE_QUANTIZER_H_
