// A LoRA adapter: what it adapts (spec) and its values in one flat fp32 buffer with named views.
//
// y = W x + scale * B (A x), A [r, in], B [out, r]. In the buffer a module is A [r, in] followed by
// B transposed, [r, out]: each rank-1 component is one contiguous run of A and one of B, so that a
// nested slice of lower rank, sparsification and masks are runs too. Modules stand in the order of
// the spec (layer, then q k v o gate up down, then output). This order is the canonical coordinate
// order of updates on the wire (proto/UPDATE_FORMAT.md).
//
// A module may be on a part of a tensor's rows, where a family computes several linears in one
// (phi3's q, k and v; gate and up).
#ifndef FEDGE_COMMON_ADAPTER_LORA_ADAPTER_H_
#define FEDGE_COMMON_ADAPTER_LORA_ADAPTER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/digest.h"

namespace fedge {

inline constexpr int64_t kMaxLoraRank = 1024;
inline constexpr int64_t kMaxLoraModules = 16384;
inline constexpr int64_t kMaxAdapterParameters = int64_t{1} << 31;

// One adapted linear layer.
struct LoraModule {
  std::string tensor;        // the base tensor in GGUF's naming: "blk.0.attn_q.weight"
  int64_t in_features = 0;   // columns of W
  int64_t out_features = 0;  // rows of W; of a part the rows it adapts
  int64_t rank = 0;
  int64_t offset = 0;       // of this module's A in the flat buffer, set by LoraSpec
  int64_t first_row = 0;    // of a part
  int64_t tensor_rows = 0;  // of a part: all rows of W; 0: the module is on the whole tensor

  bool is_part() const { return tensor_rows != 0; }
  int64_t a_size() const { return rank * in_features; }
  int64_t b_size() const { return rank * out_features; }
};

// Immutable description of an adapter's shape.
class LoraSpec {
 public:
  LoraSpec() = default;
  // InvalidArgument when a module is out of bounds (rank, features, rows that another module adapts
  // too, total size).
  static absl::StatusOr<LoraSpec> Create(std::string architecture, float alpha,
                                         std::vector<LoraModule> modules);

  const std::string& architecture() const { return architecture_; }  // "llama"
  float alpha() const { return alpha_; }
  const std::vector<LoraModule>& modules() const { return modules_; }
  int64_t num_parameters() const { return num_parameters_; }
  // alpha / rank of the module: the factor of B A x.
  float scale(const LoraModule& module) const { return alpha_ / static_cast<float>(module.rank); }
  // Index of the module on the whole of `tensor`, or on its part that begins at `first_row`; -1:
  // there is none.
  int64_t Find(absl::string_view tensor) const;
  int64_t FindPart(absl::string_view tensor, int64_t first_row) const;
  // SHA-256 over architecture, alpha and all modules: two adapters are addable iff these are equal.
  const Digest& layout_hash() const { return layout_hash_; }

 private:
  std::string architecture_;
  float alpha_ = 0;
  std::vector<LoraModule> modules_;
  int64_t num_parameters_ = 0;
  Digest layout_hash_;
  std::vector<int32_t> by_name_;  // indices of modules_, sorted by tensor name and first row
};

// Spec plus values. Copyable; copies are deep.
class LoraAdapter {
 public:
  LoraAdapter() = default;
  explicit LoraAdapter(LoraSpec spec);  // all zero

  // A uniform in +-sqrt(1/in) (PEFT's Kaiming-uniform with a = sqrt 5), B zero; the same values for
  // the same seed whatever the order of modules.
  void InitializeForTraining(uint64_t seed);

  const LoraSpec& spec() const { return spec_; }
  absl::Span<float> values() { return absl::MakeSpan(values_); }
  absl::Span<const float> values() const { return values_; }

  absl::Span<float> a(int64_t module);  // [rank, in]
  absl::Span<float> b(int64_t module);  // B transposed: [rank, out]
  absl::Span<const float> a(int64_t module) const;
  absl::Span<const float> b(int64_t module) const;

 private:
  LoraSpec spec_;
  std::vector<float> values_;
};

// The same change of the weights without modules on parts, which runtimes and file formats do not
// know: the parts of a tensor become one module on all of it. Its rank is the sum of theirs (A
// stacked, B zero outside of each part's rows), and B is multiplied by that rank / the part's,
// since alpha is divided by the rank. An adapter without parts is returned as it is.
// InvalidArgument when the sum is above kMaxLoraRank.
absl::StatusOr<LoraAdapter> WithoutParts(const LoraAdapter& adapter);

}  // namespace fedge

#endif  // FEDGE_COMMON_ADAPTER_LORA_ADAPTER_H_
