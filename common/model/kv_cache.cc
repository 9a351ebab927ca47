#include "common/model/kv_cache.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/base/status.h"
#include "common/tensor/quantize.h"

namespace fedge {
namespace {

constexpr float kMaxHalf = 65504.0f;
// Values that one task of Write stores.
constexpr int64_t kWriteValues = 8192;

DType TypeOf(KvType type) {
  switch (type) {
    case KvType::kF32:
      return DType::kF32;
    case KvType::kF16:
      return DType::kF16;
    case KvType::kQ8:
      return DType::kQ8_0;
    case KvType::kQ4:
      return DType::kQ4_1;
  }
  return DType::kF32;
}

}  // namespace

absl::StatusOr<KvType> KvTypeFromName(absl::string_view name) {
  if (name == "f32") return KvType::kF32;
  if (name == "f16") return KvType::kF16;
  if (name == "q8") return KvType::kQ8;
  if (name == "q4") return KvType::kQ4;
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" is no type of key-value cache; known are f32, f16, q8, q4"));
}

KvLayer::KvLayer(DType type, int64_t kv_heads, int64_t head_dim, int64_t slots)
    : type_(type), kv_heads_(kv_heads), head_dim_(head_dim), slots_(slots) {
  const int64_t block = BlockElements(type);
  row_ = (head_dim + block - 1) / block * block;
  row_bytes_ = RowBytes(type, row_);
  keys_.resize(static_cast<size_t>(kv_heads * slots * row_bytes_));
  values_.resize(keys_.size());
}

int64_t KvLayer::RowOffset(int64_t head, int64_t token) const {
  return (head * slots_ + token % slots_) * row_bytes_;
}

void KvLayer::Read(const std::vector<uint8_t>& rows, int64_t head, int64_t first, int64_t count,
                   float* out) const {
  if (count == 0) return;
  FEDGE_CHECK(first >= oldest_ && count <= slots_, "tokens ", first, " to ", first + count,
              " of a cache of ", slots_, " from ", oldest_, " on");
  const int64_t until_wrap = std::min(count, slots_ - first % slots_);
  Dequantize(type_, rows.data() + RowOffset(head, first), until_wrap * row_, out);
  Dequantize(type_, rows.data() + RowOffset(head, 0), (count - until_wrap) * row_,
             out + until_wrap * row_);
}

void KvLayer::ReadKeys(int64_t head, int64_t first, int64_t count, float* out) const {
  Read(keys_, head, first, count, out);
}

void KvLayer::ReadValues(int64_t head, int64_t first, int64_t count, float* out) const {
  Read(values_, head, first, count, out);
}

bool KvLayer::WriteHead(int64_t head, int64_t first, int64_t count, ConstRows from,
                        std::vector<uint8_t>& rows) const {
  const float limit = type_ == DType::kF32 ? HUGE_VALF : kMaxHalf;
  bool finite = true;
  std::vector<float> row(static_cast<size_t>(row_), 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const float* const x = from.data + i * from.stride + head * head_dim_;
    for (int64_t j = 0; j < head_dim_; ++j) {
      finite &= std::isfinite(x[j]);
      row[static_cast<size_t>(j)] = std::clamp(x[j], -limit, limit);
    }
    if (!finite) return false;
    const absl::Status stored = Quantize(type_, row, rows.data() + RowOffset(head, first + i));
    FEDGE_CHECK(stored.ok(), stored.ToString());
  }
  return true;
}

bool KvLayer::Write(int64_t first, int64_t count, ConstRows keys, ConstRows values,
                    ThreadPool& pool) {
  const int64_t skipped = std::max<int64_t>(0, count - slots_);
  keys.data += skipped * keys.stride;
  values.data += skipped * values.stride;
  first += skipped;
  count -= skipped;
  const int64_t piece = std::max<int64_t>(1, kWriteValues / row_);
  const int64_t pieces = (count + piece - 1) / piece;
  std::atomic<bool> finite = true;
  const auto write = [&](int64_t task) {
    const int64_t head = task / 2 % kv_heads_, at = task / 2 / kv_heads_ * piece;
    const ConstRows& rows = task % 2 == 0 ? keys : values;
    const ConstRows from = {rows.data + at * rows.stride, rows.stride};
    if (!WriteHead(head, first + at, std::min(piece, count - at), from,
                   task % 2 == 0 ? keys_ : values_)) {
      finite = false;
    }
  };
  const int64_t tasks = 2 * kv_heads_ * pieces;
  if (count * kv_heads_ * row_ < kWriteValues) {  // too little to be shared
    for (int64_t task = 0; task < tasks; ++task) write(task);
  } else {
    pool.ParallelFor(tasks, write);
  }
  oldest_ = std::max(oldest_, first + count - slots_);
  return finite;
}

KvCache::KvCache(const ModelConfig& config, int64_t capacity, const KvCacheOptions& options)
    : capacity_(capacity), windows_(config.windows) {
  FEDGE_CHECK(capacity >= 0 && options.rewind >= 0, "capacity ", capacity, ", rewind ",
              options.rewind);
  for (const int64_t window : windows_) {
    const int64_t seen = window == 0 ? capacity : window - 1 + options.rewind;
    layers_.emplace_back(TypeOf(options.type), config.head_count_kv, config.head_dim,
                         std::max<int64_t>(1, std::min(capacity, seen)));
  }
}

int64_t KvCache::bytes() const {
  int64_t sum = 0;
  for (const KvLayer& layer : layers_) sum += layer.bytes();
  return sum;
}

absl::Status KvCache::Truncate(int64_t size) {
  FEDGE_CHECK(size >= 0 && size <= size_, "truncating ", size_, " tokens to ", size);
  if (size == 0) {
    for (KvLayer& layer : layers_) layer.Clear();
    size_ = 0;
    return absl::OkStatus();
  }
  for (size_t i = 0; i < layers_.size() && size < size_; ++i) {
    if (windows_[i] == 0) continue;
    const int64_t needed = std::max<int64_t>(0, size - windows_[i] + 1);
    if (needed >= layers_[i].oldest()) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "layer ", i, " has a window of ", windows_[i], " tokens and has forgotten token ", needed,
        ", which is needed to go back from ", size_, " tokens to ", size,
        "; make the cache with a larger rewind, or start again"));
  }
  size_ = size;
  return absl::OkStatus();
}

}  // namespace fedge
