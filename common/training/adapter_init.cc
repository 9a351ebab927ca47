#include "common/training/adapter_init.h"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/tensor/matmul.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

// More sketch vectors than the rank, and passes over the error: the spectrum of rounding is flat,
// where a plain sketch is poor.
constexpr int64_t kOversampling = 12;
constexpr int kPowerIterations = 6;
// A singular value below this part of the largest is none.
constexpr double kNoError = 1e-5;

absl::StatusOr<WeightMatrix> MatrixOf(const GgufFile& file, const LoraModule& module) {
  const GgufTensor* const tensor = file.FindTensor(module.tensor);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": no tensor ", module.tensor, ", which the adapter changes"));
  }
  const absl::StatusOr<WeightMatrix> matrix = tensor->AsMatrix();
  if (!matrix.ok()) return Annotate(matrix.status(), file.path());
  const int64_t rows = module.is_part() ? module.tensor_rows : module.out_features;
  if (matrix->rows != rows || matrix->cols != module.in_features) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": tensor ", module.tensor, " is ", matrix->rows, " x ",
                     matrix->cols, ", the adapter's module is ", rows, " x ", module.in_features));
  }
  return matrix->Rows(module.first_row, module.out_features);
}

// full - base, dense [rows, cols].
std::vector<float> ErrorOf(const WeightMatrix& full, const WeightMatrix& base, ThreadPool& pool) {
  const int64_t cols = full.cols;
  std::vector<float> error(static_cast<size_t>(full.rows * cols));
  pool.ParallelFor(full.rows, [&](int64_t row) {
    std::vector<float> quantized(static_cast<size_t>(cols));
    float* const to = error.data() + row * cols;
    Dequantize(full.type, full.data + row * RowBytes(full.type, cols), cols, to);
    Dequantize(base.type, base.data + row * RowBytes(base.type, cols), cols, quantized.data());
    for (int64_t i = 0; i < cols; ++i) to[i] -= quantized[static_cast<size_t>(i)];
  });
  return error;
}

// Rows of [count, width] that are a basis of what they spanned (Gram-Schmidt, twice); a row without
// a direction of its own becomes zero.
void Orthonormalize(int64_t count, int64_t width, std::vector<float>& rows) {
  const auto row = [&](int64_t i) { return rows.data() + i * width; };
  const auto dot = [&](int64_t i, int64_t j) {
    double sum = 0;
    for (int64_t k = 0; k < width; ++k) sum += double{row(i)[k]} * double{row(j)[k]};
    return sum;
  };
  for (int64_t i = 0; i < count; ++i) {
    const double before = std::sqrt(dot(i, i));
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = 0; j < i; ++j) {
        const double along = dot(i, j);
        for (int64_t k = 0; k < width; ++k) {
          row(i)[k] = static_cast<float>(double{row(i)[k]} - along * double{row(j)[k]});
        }
      }
    }
    const double norm = std::sqrt(dot(i, i));
    const double factor = norm > 1e-6 * before ? 1 / norm : 0;
    for (int64_t k = 0; k < width; ++k) {
      row(i)[k] = static_cast<float>(factor * double{row(i)[k]});
    }
  }
}

// The leading part of a matrix: sum of values[i] * left_i right_i^T.
struct SingularPart {
  std::vector<double> values;  // descending
  std::vector<float> left;     // [count, rows of the matrix], of length 1
  std::vector<float> right;    // [count, columns], of length values[i]
};

SingularPart LeadingPart(const WeightMatrix& error, int64_t count, Rng rng, ThreadPool& pool) {
  const int64_t sketch = std::min({count + kOversampling, error.rows, error.cols});
  std::vector<float> left(static_cast<size_t>(sketch * error.rows));
  std::vector<float> right(static_cast<size_t>(sketch * error.cols));
  for (float& value : right) value = static_cast<float>(rng.Normal());
  for (int pass = 0; pass <= kPowerIterations; ++pass) {
    MatMulForward(error, right.data(), sketch, 1, Accumulate::kNo, left.data(), pool);
    Orthonormalize(sketch, error.rows, left);
    MatMulBackward(error, left.data(), sketch, 1, Accumulate::kNo, right.data(), pool);
    if (pass < kPowerIterations) Orthonormalize(sketch, error.cols, right);
  }
  // right = left E: its small Gram matrix has the squares of the singular values.
  Eigen::MatrixXd gram(sketch, sketch);
  for (int64_t i = 0; i < sketch; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < error.cols; ++k) {
        sum += double{right[static_cast<size_t>(i * error.cols + k)]} *
               double{right[static_cast<size_t>(j * error.cols + k)]};
      }
      gram(i, j) = gram(j, i) = sum;
    }
  }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(gram);
  SingularPart part;
  const auto combine = [&](const std::vector<float>& from, int64_t width, int64_t component) {
    std::vector<double> sum(static_cast<size_t>(width));
    for (int64_t i = 0; i < sketch; ++i) {
      const double weight = solver.eigenvectors()(i, component);
      for (int64_t k = 0; k < width; ++k) {
        sum[static_cast<size_t>(k)] += weight * double{from[static_cast<size_t>(i * width + k)]};
      }
    }
    return sum;
  };
  for (int64_t i = 0; i < std::min(count, sketch); ++i) {
    const int64_t component = sketch - 1 - i;  // Eigen's values ascend
    part.values.push_back(std::sqrt(std::max(0.0, solver.eigenvalues()(component))));
    for (const double x : combine(left, error.rows, component)) {
      part.left.push_back(static_cast<float>(x));
    }
    for (const double x : combine(right, error.cols, component)) {
      part.right.push_back(static_cast<float>(x));
    }
  }
  return part;
}

// Puts the components that carry an error into module `index`.
void SetFactors(const SingularPart& part, int64_t index, LoraAdapter& adapter) {
  const LoraModule& module = adapter.spec().modules()[static_cast<size_t>(index)];
  const double scale = double{adapter.spec().scale(module)};
  const absl::Span<float> a = adapter.a(index);
  const absl::Span<float> b = adapter.b(index);
  for (size_t i = 0; i < part.values.size(); ++i) {
    if (!(part.values[i] > kNoError * part.values.front())) break;
    const double half = std::sqrt(part.values[i] * scale);
    const auto in = static_cast<size_t>(module.in_features);
    const auto out = static_cast<size_t>(module.out_features);
    for (size_t k = 0; k < in; ++k) {
      a[i * in + k] = static_cast<float>(double{part.right[i * in + k]} / half);
    }
    for (size_t k = 0; k < out; ++k) {
      b[i * out + k] = static_cast<float>(double{part.left[i * out + k]} * part.values[i] / half);
    }
  }
}

}  // namespace

absl::Status CheckAdapterInit(const AdapterInit& init) {
  if (init.kind != "zero-b" && init.kind != "loftq") {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown adapter initialisation \"", init.kind, "\"; known: zero-b, loftq"));
  }
  if ((init.kind == "loftq") == !init.unquantized.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      init.kind == "loftq"
          ? "adapter initialisation loftq needs the unquantized model (an F32, F16 or BF16 GGUF)"
          : "an unquantized model is of use to adapter initialisation loftq only");
}

absl::Status InitializeAdapter(const AdapterInit& init, const BaseModel& base, uint64_t seed,
                               ThreadPool& pool, Env& env, LoraAdapter& adapter) {
  RETURN_IF_ERROR(CheckAdapterInit(init));
  if (init.kind == "zero-b") {
    adapter.InitializeForTraining(seed);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> full,
                   GgufFile::Open(init.unquantized, env));
  return StartFromQuantizationError(base, *full, seed, pool, adapter);
}

absl::Status StartFromQuantizationError(const BaseModel& base, const GgufFile& full, uint64_t seed,
                                        ThreadPool& pool, LoraAdapter& adapter) {
  const std::vector<LoraModule>& modules = adapter.spec().modules();
  adapter.InitializeForTraining(seed);
  for (size_t i = 0; i < modules.size(); ++i) {
    ASSIGN_OR_RETURN(const WeightMatrix whole, MatrixOf(full, modules[i]));
    ASSIGN_OR_RETURN(const WeightMatrix quantized, MatrixOf(base.file(), modules[i]));
    const std::vector<float> error = ErrorOf(whole, quantized, pool);
    const bool exact = std::all_of(error.begin(), error.end(), [](float x) { return x == 0; });
    if (exact) continue;
    const SingularPart part =
        LeadingPart(DenseView(error.data(), whole.rows, whole.cols), modules[i].rank,
                    Rng::Stream(seed, absl::StrCat("loftq/", modules[i].tensor)), pool);
    if (!std::isfinite(part.values.front())) {
      return absl::InvalidArgumentError(absl::StrCat(full.path(), ": tensor ", modules[i].tensor,
                                                     " holds values that are not finite"));
    }
    SetFactors(part, static_cast<int64_t>(i), adapter);
  }
  return absl::OkStatus();
}

}  // namespace fedge
