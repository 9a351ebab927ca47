// proto/ADAPTER_FORMAT.md as a program, written from the page and not from the codec: slow, plain,
// for tests only. Header and checksums are the caller's part: this is the payload of a delta.
#ifndef FEDGE_TESTS_TESTING_REFERENCE_ADAPTER_DECODER_H_
#define FEDGE_TESTS_TESTING_REFERENCE_ADAPTER_DECODER_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/adapter/lora_adapter.h"
#include "tests/testing/reference_readers.h"

namespace fedge::testing {

class ReferenceAdapterDecoder {
 public:
  // The units of the delta, or nothing when the payload is not one.
  static std::optional<std::vector<int64_t>> Decode(const LoraSpec& spec,
                                                    const std::string& payload) {
    ReferenceAdapterDecoder decoder(payload);
    std::vector<int64_t> units;
    for (const LoraModule& module : spec.modules()) {
      const int64_t sizes[2] = {module.a_size(), module.b_size()};
      for (int factor = 0; factor < 2; ++factor) {
        if (!decoder.Run(factor, sizes[factor], units)) return std::nullopt;
      }
    }
    if (!decoder.coder_.AtEnd()) return std::nullopt;
    return units;
  }

 private:
  enum Kind { kAny, kSame, kNonzero, kLonger, kHigh, kNext };
  using Key = std::tuple<Kind, int, int, int>;

  explicit ReferenceAdapterDecoder(const std::string& payload) : coder_(payload) {}

  bool Decision(Kind kind, int factor, int a = 0, int b = 0) {
    return coder_.Decision(probabilities_[{kind, factor, a, b}]);
  }

  bool Run(int factor, int64_t size, std::vector<int64_t>& units) {
    if (!Decision(kAny, factor)) {
      units.insert(units.end(), static_cast<size_t>(size), 0);
      return true;
    }
    if (!Decision(kSame, factor)) {
      exponent_[factor] = 0;
      for (int i = 0; i < 5; ++i)
        exponent_[factor] = 2 * exponent_[factor] + (coder_.Raw() ? 1 : 0);
    }
    for (auto& [key, probability] : probabilities_) {
      const auto& [kind, of_factor, a, b] = key;
      if (of_factor != factor || (kind != kNonzero && kind != kLonger)) continue;
      if (probability.c > 30) probability.c = 30;
    }
    int64_t before[2] = {0, 0};
    for (int64_t i = 0; i < size; ++i) {
      int around = 0;
      while (around < 7 && (before[0] + before[1]) >> around != 0) ++around;
      before[1] = before[0];
      before[0] = Decision(kNonzero, factor, around) ? Magnitude(factor, around) : 0;
      const int64_t magnitude = before[0] << exponent_[factor];
      if (magnitude > 1 << 30) return false;
      units.push_back(before[0] != 0 && coder_.Raw() ? -magnitude : magnitude);
    }
    return true;
  }
  int64_t Magnitude(int factor, int around) {
    int n = 1;
    while (n < 31 && Decision(kLonger, factor, around, n)) ++n;
    int64_t magnitude = 1;
    if (n >= 2) magnitude = 2 * magnitude + (Decision(kHigh, factor, n) ? 1 : 0);
    if (n >= 3) {
      const bool next = Decision(kNext, factor, n, static_cast<int>(magnitude & 1));
      magnitude = 2 * magnitude + (next ? 1 : 0);
    }
    for (int i = 3; i < n; ++i) magnitude = 2 * magnitude + (coder_.Raw() ? 1 : 0);
    return magnitude;
  }

  ReferenceRangeDecoder coder_;
  int exponent_[2] = {0, 0};
  std::map<Key, ReferenceProbability> probabilities_;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_REFERENCE_ADAPTER_DECODER_H_
