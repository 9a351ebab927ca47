#include "common/tensor/dtype.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "common/base/status.h"

namespace fedge {
namespace {

struct DTypeRow {
  DType type;
  absl::string_view name;
  int64_t elements;  // of a block
  int64_t bytes;     // of a block
};

constexpr DTypeRow kTypes[] = {
    {DType::kF32, "F32", 1, 4},       {DType::kF16, "F16", 1, 2},
    {DType::kBF16, "BF16", 1, 2},     {DType::kQ4_0, "Q4_0", 32, 18},
    {DType::kQ4_1, "Q4_1", 32, 20},   {DType::kQ5_0, "Q5_0", 32, 22},
    {DType::kQ5_1, "Q5_1", 32, 24},   {DType::kQ8_0, "Q8_0", 32, 34},
    {DType::kQ4_K, "Q4_K", 256, 144}, {DType::kQ5_K, "Q5_K", 256, 176},
    {DType::kQ6_K, "Q6_K", 256, 210},
};

constexpr uint32_t kNumIds = 31;

// Rows by id, so that the functions below are one load each.
struct Index {
  const DTypeRow* rows[kNumIds] = {};
  constexpr Index() {
    for (const DTypeRow& row : kTypes) rows[static_cast<uint32_t>(row.type)] = &row;
  }
};
constexpr Index kIndex;

const DTypeRow& RowOf(DType type) {
  const uint32_t id = static_cast<uint32_t>(type);
  FEDGE_CHECK(id < kNumIds && kIndex.rows[id] != nullptr, "type id ", id);
  return *kIndex.rows[id];
}

std::string SupportedNames() {
  std::string names;
  for (const DTypeRow& row : kTypes) absl::StrAppend(&names, names.empty() ? "" : ", ", row.name);
  return names;
}

}  // namespace

absl::StatusOr<DType> DTypeFromId(uint32_t id) {
  if (id < kNumIds && kIndex.rows[id] != nullptr) return kIndex.rows[id]->type;
  return absl::UnimplementedError(absl::StrCat(
      "tensor type id ", id, " is not supported; requantize to one of ", SupportedNames()));
}

absl::string_view DTypeName(DType type) { return RowOf(type).name; }

absl::StatusOr<DType> DTypeFromName(absl::string_view name) {
  for (const DTypeRow& row : kTypes) {
    if (absl::EqualsIgnoreCase(row.name, name)) return row.type;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no tensor type '", name, "'; supported: ", SupportedNames()));
}

int64_t BlockElements(DType type) { return RowOf(type).elements; }

int64_t BlockBytes(DType type) { return RowOf(type).bytes; }

int64_t RowBytes(DType type, int64_t elements) {
  const DTypeRow& row = RowOf(type);
  FEDGE_CHECK(elements >= 0 && elements % row.elements == 0, elements, " elements of ", row.name);
  return elements / row.elements * row.bytes;
}

}  // namespace fedge
