// A GGUF model with fewer bits a weight.
#ifndef FEDGE_TOOLS_PREPARE_QUANTIZE_MODEL_H_
#define FEDGE_TOOLS_PREPARE_QUANTIZE_MODEL_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/env.h"
#include "common/tensor/dtype.h"
#include "tools/prepare/tensor_stream.h"
#include "tools/prepare/tensor_types.h"

namespace fedge {

struct QuantizeModelOptions {
  std::string model_file;
  std::string output_file;
  QuantizationMix mix;
  // Weights that are quantized already lose twice; without this they are an error.
  bool allow_requantize = false;
  int threads = 1;
};

// Before each tensor. False stops the work with Cancelled.
struct PrepareProgress {
  int64_t tensor = 0;  // 0, 1, ...
  int64_t tensors = 0;
  int64_t bytes_done = 0;  // of bytes, of the output
  int64_t bytes = 0;
  std::string name;
};
using PrepareEvents = std::function<bool(const PrepareProgress&)>;

struct QuantizeModelResult {
  uint64_t input_bytes = 0;
  uint64_t output_bytes = 0;
  std::map<DType, TypeTotals> types;
};

// Copies the metadata as it is but for general.file_type and general.quantization_version, and the
// tensors in their order, matrices in the types of `mix`. Memory: a stretch of one tensor.
// InvalidArgument: the output is the input, an adapter, quantized tensors (see above), a value that
// a type cannot hold (with tensor and row). Unimplemented: a model split over several files.
absl::StatusOr<QuantizeModelResult> QuantizeModel(const QuantizeModelOptions& options,
                                                  const PrepareEvents& events, Env& env);

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_QUANTIZE_MODEL_H_
