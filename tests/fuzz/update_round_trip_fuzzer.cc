// Arbitrary values through every kind of update and back: the residual is the exact difference, the
// size keeps its bound and its budget, the reference decoder agrees.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/base/status.h"
#include "common/codec/update_codec.h"
#include "tests/testing/update_samples.h"

namespace fedge {
namespace {

constexpr size_t kChoices = 6;  // bytes that choose options

EncodeOptions OptionsOf(const uint8_t* choice) {
  const int widths[] = {1, 2, 3, 4, 8, 16};
  EncodeOptions options;
  constexpr UpdateSupport kSupports[] = {UpdateSupport::kDense, UpdateSupport::kTopK,
                                         UpdateSupport::kSeeded, UpdateSupport::kTrellis};
  options.support = kSupports[choice[0] % 4];
  options.value_bits = widths[choice[1] % 6];
  options.density = static_cast<double>(choice[2]) / 250;
  options.relaxation = static_cast<double>(choice[1]) / 128;
  options.per_run = (choice[3] & 1) != 0;
  options.stochastic = (choice[3] & 2) != 0;
  options.seed = choice[4];
  options.rounding_seed = choice[4];
  options.budget_bytes = (choice[3] & 4) != 0 ? 132 + 2 * uint64_t{choice[5]} : 0;
  return options;
}

// Two modules; `slice` chooses a part of them.
SliceLayout LayoutOf(size_t values, uint8_t slice) {
  std::vector<LoraModule> modules(2);
  for (size_t i = 0; i < 2; ++i) {
    modules[i].tensor = i == 0 ? "blk.0.attn_q.weight" : "blk.1.attn_q.weight";
    modules[i].in_features = static_cast<int64_t>(values / 4 + i + 1);
    modules[i].out_features = static_cast<int64_t>(values / 8 + 1);
    modules[i].rank = 2;
  }
  const LoraSpec spec = LoraSpec::Create("llama", 1, modules).value();
  AdapterSlice part;
  part.factors = static_cast<SliceFactors>(slice % 3);
  part.first_component = slice / 3 % 2;
  return SliceLayout::Create(spec, part).value();
}

void RoundTrip(const uint8_t* choice, absl::string_view input) {
  const EncodeOptions options = OptionsOf(choice);
  const SliceLayout layout = LayoutOf(input.size() / sizeof(float), choice[5]);
  std::vector<float> delta(static_cast<size_t>(layout.adapter_size()));
  std::memcpy(delta.data(), input.data(), std::min(input.size(), delta.size() * sizeof(float)));
  std::vector<float> residual = delta;
  const UpdateHeader header = testing::SampleHeader();
  const auto bytes = EncodeUpdate(delta, layout, header, options, absl::MakeSpan(residual));
  if (!bytes.ok()) return;
  const auto size = static_cast<uint64_t>(layout.size());
  FEDGE_CHECK(bytes->size() <= EncodedSizeBound(size, options), bytes->size());
  const auto decoded = DecodeUpdate(*bytes, header.layout_hash, layout);
  FEDGE_CHECK(decoded.ok(), decoded.status().ToString());
  const std::vector<float> flat = testing::Flat(*decoded, layout);
  std::vector<float> inside(delta.size(), 1.0f);
  layout.ClearOutside(absl::MakeSpan(inside));
  for (size_t i = 0; i < delta.size(); ++i) {
    if (inside[i] == 0) {
      FEDGE_CHECK(flat[i] == 0 && std::memcmp(&residual[i], &delta[i], sizeof(float)) == 0, i);
      continue;
    }
    FEDGE_CHECK(residual[i] == delta[i] - flat[i], i);
    const double value = flat[i];
    FEDGE_CHECK(std::abs(value) <= 65504 && value * 0x1p24 == std::floor(value * 0x1p24), i);
  }
  const auto reference = testing::ReferenceFlat(*bytes, header.layout_hash, layout);
  FEDGE_CHECK(reference.has_value() && *reference == flat);
}

}  // namespace
}  // namespace fedge

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < fedge::kChoices) return 0;
  fedge::RoundTrip(data, absl::string_view(reinterpret_cast<const char*>(data) + fedge::kChoices,
                                           size - fedge::kChoices));
  return 0;
}
