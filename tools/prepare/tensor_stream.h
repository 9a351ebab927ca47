// Writes the tensors of a GGUF file from rows of floats: encoded by many threads, with memory for a
// stretch of rows only, and the error of the encoding summed up.
#ifndef FEDGE_TOOLS_PREPARE_TENSOR_STREAM_H_
#define FEDGE_TOOLS_PREPARE_TENSOR_STREAM_H_

#include <cstdint>
#include <functional>
#include <map>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/thread_pool.h"
#include "common/formats/gguf_file_writer.h"
#include "common/tensor/dtype.h"

namespace fedge {

// The tensors of one type in a file, and what encoding them cost.
struct TypeTotals {
  int64_t tensors = 0;
  int64_t values = 0;
  int64_t bytes = 0;
  int64_t encoded_values = 0;  // of those that were not copied
  double squares = 0;          // sum of the squares of the encoded values
  double squared_error = 0;    // sum of the squares of their errors

  double rmse() const;           // 0 when nothing was encoded
  double relative_rmse() const;  // of the root mean square of the values
};

class TensorStream {
 public:
  // Writes values of row `row` to `out`. Called from several threads at once.
  using RowSource = std::function<void(int64_t row, absl::Span<float> out)>;

  // Both must outlive the stream.
  TensorStream(GgufFileWriter& file, ThreadPool& pool) : file_(file), pool_(pool) {}

  // The next tensor, encoded as shape.type. InvalidArgument names tensor and row of a value that
  // the type cannot hold; else the errors of the file. The same bytes and sums for any number of
  // threads.
  absl::Status Encode(const GgufTensorShape& shape, const RowSource& rows);
  // The next tensor as it is in another file.
  absl::Status Copy(const GgufTensorShape& shape, absl::string_view data);

  const std::map<DType, TypeTotals>& totals() const { return totals_; }

 private:
  GgufFileWriter& file_;
  ThreadPool& pool_;
  std::map<DType, TypeTotals> totals_;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_PREPARE_TENSOR_STREAM_H_
