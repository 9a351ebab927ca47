#include "common/adapter/lora_adapter.h"

#include <algorithm>
#include <cmath>
#include <map>
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
  if (module.tensor_rows == 0 && module.first_row == 0) return absl::OkStatus();
  const bool is_part = module.tensor_rows <= kMaxFeatures && module.first_row >= 0 &&
                       module.out_features < module.tensor_rows &&
                       module.first_row <= module.tensor_rows - module.out_features;
  if (is_part) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tensor ", module.tensor, ": ", module.out_features, " rows from ",
                   module.first_row, " on are no part of ", module.tensor_rows, " rows"));
}

void WriteName(absl::string_view name, ByteWriter& writer) {
  writer.Write<uint32_t>(static_cast<uint32_t>(name.size()));
  writer.WriteBytes(name);
}

Digest HashLayout(absl::string_view architecture, float alpha,
                  const std::vector<LoraModule>& modules) {
  ByteWriter writer;
  const bool parts =
      std::any_of(modules.begin(), modules.end(), [](const LoraModule& m) { return m.is_part(); });
  writer.WriteBytes(parts ? "fedge lora layout 2\n" : "fedge lora layout 1\n");
  WriteName(architecture, writer);
  writer.Write<float>(alpha);
  writer.Write<uint64_t>(modules.size());
  for (const LoraModule& module : modules) {
    WriteName(module.tensor, writer);
    writer.Write<int64_t>(module.in_features);
    writer.Write<int64_t>(module.out_features);
    writer.Write<int64_t>(module.rank);
    if (!parts) continue;
    writer.Write<int64_t>(module.first_row);
    writer.Write<int64_t>(module.tensor_rows);
  }
  return Sha256Of(writer.bytes());
}

std::pair<absl::string_view, int64_t> PlaceOf(const LoraModule& module) {
  return {module.tensor, module.first_row};
}

// Of modules that follow each other in the order of their places.
absl::Status CheckApart(const LoraModule& before, const LoraModule& module) {
  if (before.tensor != module.tensor) return absl::OkStatus();
  const bool apart = before.tensor_rows == module.tensor_rows &&
                     before.in_features == module.in_features && module.is_part() &&
                     before.first_row + before.out_features <= module.first_row;
  if (apart) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tensor ", module.tensor, " is adapted twice"));
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
  const auto module_at = [&](int32_t i) -> const LoraModule& {
    return modules[static_cast<size_t>(i)];
  };
  std::sort(spec.by_name_.begin(), spec.by_name_.end(),
            [&](int32_t x, int32_t y) { return PlaceOf(module_at(x)) < PlaceOf(module_at(y)); });
  for (size_t i = 1; i < spec.by_name_.size(); ++i) {
    RETURN_IF_ERROR(CheckApart(module_at(spec.by_name_[i - 1]), module_at(spec.by_name_[i])));
  }
  spec.layout_hash_ = HashLayout(architecture, alpha, modules);
  spec.architecture_ = std::move(architecture);
  spec.alpha_ = alpha;
  spec.modules_ = std::move(modules);
  return spec;
}

int64_t LoraSpec::FindPart(absl::string_view tensor, int64_t first_row) const {
  const std::pair<absl::string_view, int64_t> place(tensor, first_row);
  const auto place_of = [this](int32_t i) { return PlaceOf(modules_[static_cast<size_t>(i)]); };
  const auto found =
      std::lower_bound(by_name_.begin(), by_name_.end(), place,
                       [&](int32_t i, const auto& key) { return place_of(i) < key; });
  return found != by_name_.end() && place_of(*found) == place ? *found : -1;
}

int64_t LoraSpec::Find(absl::string_view tensor) const {
  const int64_t found = FindPart(tensor, 0);
  return found >= 0 && modules_[static_cast<size_t>(found)].is_part() ? -1 : found;
}

LoraAdapter::LoraAdapter(LoraSpec spec)
    : spec_(std::move(spec)), values_(static_cast<size_t>(spec_.num_parameters())) {}

void LoraAdapter::InitializeForTraining(uint64_t seed) {
  const std::vector<LoraModule>& modules = spec_.modules();
  for (size_t i = 0; i < modules.size(); ++i) {
    // A stream per tensor name: adding or reordering modules leaves the others' values alone.
    std::string stream = absl::StrCat("lora_a/", modules[i].tensor);
    if (modules[i].is_part()) absl::StrAppend(&stream, "/", modules[i].first_row);
    Rng rng = Rng::Stream(seed, stream);
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

namespace {

// The modules on tensors: for each of `spec`'s modules the index of the one it goes into.
struct WholeModules {
  std::vector<LoraModule> modules;
  std::vector<size_t> index;
};

WholeModules WholeModulesOf(const LoraSpec& spec) {
  WholeModules whole;
  std::map<absl::string_view, size_t> of_tensor;
  for (const LoraModule& module : spec.modules()) {
    const auto [found, is_first] = of_tensor.emplace(module.tensor, whole.modules.size());
    whole.index.push_back(found->second);
    if (!is_first) {
      whole.modules[found->second].rank += module.rank;
      continue;
    }
    LoraModule first = module;
    if (first.is_part()) first.out_features = first.tensor_rows;
    first.first_row = first.tensor_rows = 0;
    whole.modules.push_back(std::move(first));
  }
  return whole;
}

}  // namespace

absl::StatusOr<LoraAdapter> WithoutParts(const LoraAdapter& adapter) {
  const LoraSpec& spec = adapter.spec();
  const bool parts = std::any_of(spec.modules().begin(), spec.modules().end(),
                                 [](const LoraModule& m) { return m.is_part(); });
  if (!parts) return adapter;
  WholeModules whole = WholeModulesOf(spec);
  ASSIGN_OR_RETURN(LoraSpec whole_spec,
                   LoraSpec::Create(spec.architecture(), spec.alpha(), std::move(whole.modules)));
  LoraAdapter result(std::move(whole_spec));
  std::vector<int64_t> filled(result.spec().modules().size());  // ranks
  for (size_t i = 0; i < spec.modules().size(); ++i) {
    const LoraModule& from = spec.modules()[i];
    const auto to = static_cast<int64_t>(whole.index[i]);
    const LoraModule& target = result.spec().modules()[whole.index[i]];
    int64_t& rank = filled[whole.index[i]];
    const auto from_index = static_cast<int64_t>(i);
    std::copy(adapter.a(from_index).begin(), adapter.a(from_index).end(),
              result.a(to).begin() + rank * from.in_features);
    const float factor = static_cast<float>(target.rank) / static_cast<float>(from.rank);
    for (int64_t r = 0; r < from.rank; ++r, ++rank) {
      const float* const row = adapter.b(from_index).data() + r * from.out_features;
      float* const out = result.b(to).data() + rank * target.out_features + from.first_row;
      for (int64_t k = 0; k < from.out_features; ++k) out[k] = factor * row[k];
    }
  }
  return result;
}

}  // namespace fedge
