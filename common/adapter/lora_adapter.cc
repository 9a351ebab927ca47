#include "common/adapter/lora_adapter.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "common/base/byte_io.h"
#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr int64_t kMaxFeatures = int64_t{1} << 24;
constexpr size_t kMaxArchitectureBytes = 64;
constexpr size_t kMaxTensorNameBytes = 256;

absl::Status CheckModule(const LoraModule& module) {
  if (module.tensor.empty() || module.tensor.size() > kMaxTensorNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a LoRA module's tensor name has ", module.tensor.size(),
                     " bytes; allowed are 1 to ", kMaxTensorNameBytes));
  }
  if (module.rank < 1 || module.rank > kMaxLoraRank) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", module.tensor, ": rank ", module.rank,
                                                   " is outside 1 to ", kMaxLoraRank));
  }
  const bool features_fit = module.in_features >= 1 && module.in_features <= kMaxFeatures &&
                            module.out_features >= 1 && module.out_features <= kMaxFeatures;
  if (!features_fit) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", module.tensor, ": ",
                                                   module.out_features, " x ", module.in_features,
                                                   " features are outside 1 to ", kMaxFeatures));
  }
  return absl::OkStatus();
}

void WriteName(absl::string_view name, ByteWriter& writer) {
  writer.Write<uint32_t>(static_cast<uint32_t>(name.size()));
  writer.WriteBytes(name);
}

Digest HashLayout(absl::string_view architecture, float alpha,
                  const std::vector<LoraModule>& modules) {
  ByteWriter writer;
  writer.WriteBytes("fedge lora layout 1\n");
  WriteName(architecture, writer);
  writer.Write<float>(alpha);
  writer.Write<uint64_t>(modules.size());
  for (const LoraModule& module : modules) {
    WriteName(module.tensor, writer);
    writer.Write<int64_t>(module.in_features);
    writer.Write<int64_t>(module.out_features);
    writer.Write<int64_t>(module.rank);
  }
  return Sha256Of(writer.bytes());
}

}  // namespace

absl::StatusOr<LoraSpec> LoraSpec::Create(std::string architecture, float alpha,
                                          std::vector<LoraModule> modules) {
  if (architecture.empty() || architecture.size() > kMaxArchitectureBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the adapter's architecture name has ",
                                                   architecture.size(), " bytes; allowed are 1 to ",
                                                   kMaxArchitectureBytes));
  }
  if (!std::isfinite(alpha) || alpha <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("LoRA alpha ", alpha, " is not a positive finite number"));
  }
  if (modules.empty() || modules.size() > static_cast<size_t>(kMaxLoraModules)) {
    return absl::InvalidArgumentError(absl::StrCat("the adapter has ", modules.size(),
                                                   " modules; allowed are 1 to ", kMaxLoraModules));
  }
  LoraSpec spec;
  for (LoraModule& module : modules) {
    RETURN_IF_ERROR(CheckModule(module));
    module.offset = spec.num_parameters_;
    spec.num_parameters_ += module.a_size() + module.b_size();
    if (spec.num_parameters_ > kMaxAdapterParameters) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", module.tensor, ": the adapter grows over ", kMaxAdapterParameters,
                       " parameters; lower the rank"));
    }
  }
  spec.by_name_.resize(modules.size());
  std::iota(spec.by_name_.begin(), spec.by_name_.end(), 0);
  const auto name_of = [&](int32_t i) -> const std::string& {
    return modules[static_cast<size_t>(i)].tensor;
  };
  std::sort(spec.by_name_.begin(), spec.by_name_.end(),
            [&](int32_t x, int32_t y) { return name_of(x) < name_of(y); });
  for (size_t i = 1; i < spec.by_name_.size(); ++i) {
    if (name_of(spec.by_name_[i]) == name_of(spec.by_name_[i - 1])) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", name_of(spec.by_name_[i]), " is adapted twice"));
    }
  }
  spec.layout_hash_ = HashLayout(architecture, alpha, modules);
  spec.architecture_ = std::move(architecture);
  spec.alpha_ = alpha;
  spec.modules_ = std::move(modules);
  return spec;
}

int64_t LoraSpec::Find(absl::string_view tensor) const {
  const auto name_of = [this](int32_t i) {
    return absl::string_view(modules_[static_cast<size_t>(i)].tensor);
  };
  const auto found =
      std::lower_bound(by_name_.begin(), by_name_.end(), tensor,
                       [&](int32_t i, absl::string_view name) { return name_of(i) < name; });
  return found != by_name_.end() && name_of(*found) == tensor ? *found : -1;
}

LoraAdapter::LoraAdapter(LoraSpec spec)
    : spec_(std::move(spec)), values_(static_cast<size_t>(spec_.num_parameters())) {}

void LoraAdapter::InitializeForTraining(uint64_t seed) {
  const std::vector<LoraModule>& modules = spec_.modules();
  for (size_t i = 0; i < modules.size(); ++i) {
    // A stream per tensor name: adding or reordering modules leaves the others' values alone.
    Rng rng = Rng::Stream(seed, absl::StrCat("lora_a/", modules[i].tensor));
    const double bound = std::sqrt(1.0 / static_cast<double>(modules[i].in_features));
    for (float& value : a(static_cast<int64_t>(i))) {
      value = static_cast<float>(bound * (2.0 * rng.Uniform() - 1.0));
    }
    const absl::Span<float> b_values = b(static_cast<int64_t>(i));
    std::fill(b_values.begin(), b_values.end(), 0.0f);
  }
}

absl::Span<const float> LoraAdapter::a(int64_t module) const {
  const LoraModule& m = spec_.modules()[static_cast<size_t>(module)];
  return values().subspan(static_cast<size_t>(m.offset), static_cast<size_t>(m.a_size()));
}

absl::Span<const float> LoraAdapter::b(int64_t module) const {
  const LoraModule& m = spec_.modules()[static_cast<size_t>(module)];
  return values().subspan(static_cast<size_t>(m.offset + m.a_size()),
                          static_cast<size_t>(m.b_size()));
}

absl::Span<float> LoraAdapter::a(int64_t module) {
  const LoraModule& m = spec_.modules()[static_cast<size_t>(module)];
  return values().subspan(static_cast<size_t>(m.offset), static_cast<size_t>(m.a_size()));
}

absl::Span<float> LoraAdapter::b(int64_t module) {
  const LoraModule& m = spec_.modules()[static_cast<size_t>(module)];
  return values().subspan(static_cast<size_t>(m.offset + m.a_size()),
                          static_cast<size_t>(m.b_size()));
}

}  // namespace fedge
