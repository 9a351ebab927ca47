// Seeded randomness that gives the same sequence on every machine and standard library.
//
// Every random choice of a run comes from one seed through named streams (Rng::Stream), so that a
// run can be replayed and parts can be reordered without disturbing each other. Not for keys or
// privacy noise: those need a cryptographic generator.
#ifndef FEDGE_COMMON_BASE_RNG_H_
#define FEDGE_COMMON_BASE_RNG_H_

#include <cmath>
#include <cstdint>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fedge {

// xoshiro256** (Blackman, Vigna 2018), seeded through SplitMix64. Not thread-safe.
class Rng {
 public:
  explicit Rng(uint64_t seed);

  // The generator of the stream `name`, `index` of `seed`, e.g. Stream(seed, "shuffle", round).
  static Rng Stream(uint64_t seed, absl::string_view name, uint64_t index = 0);

  uint64_t Next();
  uint64_t Below(uint64_t bound);  // uniform in [0, bound), unbiased; bound > 0
  double Uniform();                // [0, 1), 53 bits
  double Normal();                 // mean 0, variance 1 (Box-Muller)

  template <typename T>
  void Shuffle(absl::Span<T> items) {  // Fisher-Yates
    for (size_t i = items.size(); i > 1; --i) {
      std::swap(items[i - 1], items[static_cast<size_t>(Below(i))]);
    }
  }

 private:
  uint64_t state_[4];
};

// 64-bit FNV-1a followed by a SplitMix64 finalizer: a stable, well-mixed hash of a name.
uint64_t StableHash(absl::string_view text);

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_RNG_H_
