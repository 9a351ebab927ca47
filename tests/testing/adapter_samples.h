// Small adapters and changes of them for tests of what travels from the server to devices.
#ifndef FEDGE_TESTS_TESTING_ADAPTER_SAMPLES_H_
#define FEDGE_TESTS_TESTING_ADAPTER_SAMPLES_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"
#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge::testing {

// Two modules, `features` to 2 `features` and back: 6 * features * rank parameters.
inline LoraSpec SampleSpec(int64_t features, int64_t rank) {
  absl::StatusOr<LoraSpec> spec = LoraSpec::Create("llama", 8,
                                                   {{.tensor = "blk.0.ffn_up.weight",
                                                     .in_features = features,
                                                     .out_features = 2 * features,
                                                     .rank = rank},
                                                    {.tensor = "blk.0.ffn_down.weight",
                                                     .in_features = 2 * features,
                                                     .out_features = features,
                                                     .rank = rank}});
  FEDGE_CHECK(spec.ok(), spec.status().message());
  return *std::move(spec);
}

// A fraction of the values, normally distributed integers of this deviation (at least 1 in
// magnitude), times 2^exponent.
inline std::vector<int32_t> RandomUnits(const LoraSpec& spec, double density, double deviation,
                                        int exponent, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> units(static_cast<size_t>(spec.num_parameters()));
  for (int32_t& value : units) {
    if (rng.Uniform() >= density) continue;
    const double draw = rng.Normal() * deviation;
    const auto magnitude = static_cast<int32_t>(std::lround(std::max(1.0, std::abs(draw))));
    value = (draw < 0 ? -magnitude : magnitude) * (1 << exponent);
  }
  return units;
}

// Makes the length and both checksums of an adapter content right again.
inline void ResealAdapter(std::string* bytes) {
  const uint64_t payload_bytes = bytes->size() - 124;
  const uint32_t payload_crc = Crc32c(absl::string_view(*bytes).substr(124));
  std::memcpy(bytes->data() + 104, &payload_bytes, sizeof(payload_bytes));
  std::memcpy(bytes->data() + 116, &payload_crc, sizeof(payload_crc));
  const uint32_t header_crc = Crc32c(absl::string_view(*bytes).substr(0, 120));
  std::memcpy(bytes->data() + 120, &header_crc, sizeof(header_crc));
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_ADAPTER_SAMPLES_H_
