#include "tools/prepare/tensor_stream.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

constexpr int64_t kStretchValues = int64_t{1} << 22;  // encoded before they are written
constexpr int64_t kTaskValues = int64_t{1} << 15;     // a thread takes at once

// What one task found; added up in the order of the rows.
struct TaskResult {
  absl::Status status;
  double squares = 0;
  double squared_error = 0;
};

// Encodes rows [first, last) to `out`.
TaskResult EncodeRows(const GgufTensorShape& shape, const TensorStream::RowSource& rows,
                      int64_t first, int64_t last, uint8_t* out) {
  const int64_t cols = shape.dims[0];
  TaskResult result;
  std::vector<float> values(static_cast<size_t>(cols));
  std::vector<float> decoded(values.size());
  for (int64_t row = first; row < last; ++row, out += RowBytes(shape.type, cols)) {
    rows(row, absl::MakeSpan(values));
    const absl::Status status = Quantize(shape.type, values, out);
    if (!status.ok()) {
      result.status = Annotate(status, absl::StrCat("tensor ", shape.name, ": row ", row));
      return result;
    }
    Dequantize(shape.type, out, cols, decoded.data());
    for (size_t i = 0; i < values.size(); ++i) {
      const double value = static_cast<double>(values[i]);
      const double error = static_cast<double>(decoded[i]) - value;
      result.squares += value * value;
      result.squared_error += error * error;
    }
  }
  return result;
}

}  // namespace

double TypeTotals::rmse() const {
  return encoded_values == 0 ? 0 : std::sqrt(squared_error / static_cast<double>(encoded_values));
}

double TypeTotals::relative_rmse() const {
  return squares == 0 ? 0 : std::sqrt(squared_error / squares);
}

absl::Status TensorStream::Encode(const GgufTensorShape& shape, const RowSource& rows) {
  const int64_t cols = shape.dims[0];
  const int64_t row_count = shape.num_elements() / cols;
  const int64_t task_rows = std::max<int64_t>(1, kTaskValues / cols);
  const int64_t stretch_rows = task_rows * std::max<int64_t>(1, kStretchValues / kTaskValues);
  TypeTotals& totals = totals_[shape.type];
  std::string bytes;
  for (int64_t first = 0; first < row_count; first += stretch_rows) {
    const int64_t last = std::min(first + stretch_rows, row_count);
    const int64_t tasks = (last - first + task_rows - 1) / task_rows;
    bytes.resize(static_cast<size_t>((last - first) * RowBytes(shape.type, cols)));
    std::vector<TaskResult> results(static_cast<size_t>(tasks));
    pool_.ParallelFor(tasks, [&](int64_t task) {
      const int64_t begin = first + task * task_rows;
      results[static_cast<size_t>(task)] = EncodeRows(
          shape, rows, begin, std::min(begin + task_rows, last),
          reinterpret_cast<uint8_t*>(bytes.data()) + (begin - first) * RowBytes(shape.type, cols));
    });
    for (const TaskResult& result : results) {
      RETURN_IF_ERROR(result.status);
      totals.squares += result.squares;
      totals.squared_error += result.squared_error;
    }
    RETURN_IF_ERROR(file_.Append(bytes));
  }
  ++totals.tensors;
  totals.values += shape.num_elements();
  totals.encoded_values += shape.num_elements();
  totals.bytes += shape.bytes();
  return absl::OkStatus();
}

absl::Status TensorStream::Copy(const GgufTensorShape& shape, absl::string_view data) {
  constexpr size_t kPart = size_t{1} << 24;
  for (size_t begin = 0; begin < data.size(); begin += kPart) {
    RETURN_IF_ERROR(file_.Append(data.substr(begin, kPart)));
  }
  TypeTotals& totals = totals_[shape.type];
  ++totals.tensors;
  totals.values += shape.num_elements();
  totals.bytes += shape.bytes();
  return absl::OkStatus();
}

}  // namespace fedge
