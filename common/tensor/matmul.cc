#include "common/tensor/matmul.h"

#include <algorithm>

#include "common/tensor/linear_group.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/tensor/matmul.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include "common/tensor/micro_kernel-inl.h"

#ifndef FEDGE_COMMON_TENSOR_MATMUL_ONCE
#define FEDGE_COMMON_TENSOR_MATMUL_ONCE
namespace fedge {

struct WeightGradientCall {
  const float* dy;
  const float* x;
  int64_t t, rows, cols;
  float scale;
  bool accumulate;
  float* dw;
};

}  // namespace fedge
#endif  // FEDGE_COMMON_TENSOR_MATMUL_ONCE

FEDGE_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

// Tokens of a sum that are done before the next: their part of x stays in the first cache.
constexpr int64_t kTokenDepth = 128;

// dw[row .. row_end)[column .. column_end)
void WeightGradientTile(const WeightGradientCall& call, int64_t row, int64_t row_end,
                        int64_t column, int64_t column_end) {
  for (int64_t c = column; c < column_end; c += StripLanes()) {
    for (int64_t t = 0; t < call.t; t += kTokenDepth) {
      Strip<float> s;
      s.a = call.dy + t * call.rows + row;
      s.a_row_stride = 1;
      s.a_depth_stride = call.rows;
      s.b = call.x + t * call.cols + c;
      s.b_stride = call.cols;
      s.depth = std::min(kTokenDepth, call.t - t);
      s.c = call.dw + row * call.cols + c;
      s.c_stride = call.cols;
      s.scale = call.scale;
      s.add_to_c = call.accumulate || t > 0;
      RunDenseColumns<kMaxVectors>(std::min(StripLanes(), column_end - c), s, row_end - row);
    }
  }
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }
bool CompiledForBf16() { return FEDGE_BF16_TARGET != 0; }

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {
namespace {

HWY_EXPORT(WeightGradientTile);
HWY_EXPORT(TargetName);
HWY_EXPORT(CompiledForBf16);

}  // namespace

bool HasBFloat16Dot() {
#if HWY_ARCH_X86
  static const bool cpu = __builtin_cpu_supports("avx512bf16") != 0;
  return cpu && HWY_DYNAMIC_DISPATCH(CompiledForBf16)();
#else
  return false;
#endif
}

void MatMulForward(const WeightMatrix& w, const float* x, int64_t t, float scale,
                   Accumulate accumulate, float* y, ThreadPool& pool, Precision precision) {
  ForwardLayer layer;
  layer.w = w;
  layer.scale = scale;
  layer.y = y;
  ForwardGroup({&layer, 1}, x, {t, {}}, precision, accumulate, pool);
}

void MatMulBackward(const WeightMatrix& w, const float* dy, int64_t t, float scale,
                    Accumulate accumulate, float* dx, ThreadPool& pool, Precision precision) {
  BackwardLayer layer;
  layer.w = w;
  layer.scale = scale;
  layer.dy = dy;
  BackwardGroup({&layer, 1}, nullptr, {t, {}}, precision, accumulate, dx, pool);
}

void MatMulWeightGradient(const float* dy, const float* x, int64_t t, int64_t rows, int64_t cols,
                          float scale, Accumulate accumulate, float* dw, ThreadPool& pool) {
  if (t == 0 && accumulate == Accumulate::kNo) std::fill(dw, dw + rows * cols, 0.0f);
  if (t == 0) return;
  const WeightGradientCall call = {dy, x, t, rows, cols, scale, accumulate == Accumulate::kYes, dw};
  constexpr int64_t kRows = 192, kColumns = 256;
  const int64_t row_tiles = (rows + kRows - 1) / kRows;
  const int64_t column_tiles = (cols + kColumns - 1) / kColumns;
  const auto run = HWY_DYNAMIC_DISPATCH(WeightGradientTile);
  pool.ParallelFor(row_tiles * column_tiles, [&](int64_t task) {
    const int64_t row = task / column_tiles * kRows, column = task % column_tiles * kColumns;
    run(call, row, std::min(row + kRows, rows), column, std::min(column + kColumns, cols));
  });
}

WeightMatrix DenseView(const float* data, int64_t rows, int64_t cols) {
  WeightMatrix view;
  view.data = reinterpret_cast<const uint8_t*>(data);
  view.type = DType::kF32;
  view.rows = rows;
  view.cols = cols;
  return view;
}

std::string SimdTargetName() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

}  // namespace fedge
#endif  // HWY_ONCE
