// Tensor element types as GGUF names them, their block sizes, and a view on a (quantized) matrix.
#ifndef FEDGE_COMMON_TENSOR_DTYPE_H_
#define FEDGE_COMMON_TENSOR_DTYPE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fedge {

// Values are ggml's type ids, as stored in GGUF files.
enum class DType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

// Unimplemented for an id Fedge cannot compute with; the message names the supported types.
absl::StatusOr<DType> DTypeFromId(uint32_t id);
absl::string_view DTypeName(DType type);  // "Q4_K"
// InvalidArgument for a name that is none of the above (case-insensitive).
absl::StatusOr<DType> DTypeFromName(absl::string_view name);

int64_t BlockElements(DType type);  // elements a block: 1, 32 or 256
int64_t BlockBytes(DType type);     // bytes a block
// Bytes of a row of `elements` values; `elements` must be a multiple of BlockElements.
int64_t RowBytes(DType type, int64_t elements);

// A frozen weight matrix W [rows, cols], row-major in blocks along a row, usually in a mapped file.
// A view: does not own `data`.
struct WeightMatrix {
  const uint8_t* data = nullptr;
  DType type = DType::kF32;
  int64_t rows = 0;  // output features
  int64_t cols = 0;  // input features; a multiple of BlockElements(type)

  const uint8_t* Row(int64_t row) const { return data + row * RowBytes(type, cols); }
  // Rows [first, first + count).
  WeightMatrix Rows(int64_t first, int64_t count) const { return {Row(first), type, count, cols}; }
};

}  // namespace fedge

#endif  // FEDGE_COMMON_TENSOR_DTYPE_H_
