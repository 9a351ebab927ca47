// Keys and values of the tokens a model has seen, for generation: rounded to fewer bits, and in
// layers with a sliding window no more of them than the window can still see.
//
// What rounding costs, in nats a token more than with kF32, over 1022 tokens decoded one by one
// (tests/integration/kv_cache_likelihood_test.cc):
//
//   model and text                              kF32       kF16       kQ8       kQ4
//   bundled model, tinyshakespeare            4.3742   +0.00001  -0.00036  +0.00481
//   stories15M Q8_0, stories                  2.5480   +0.00010  -0.00022  +0.02730
//   random gemma3 with windows, wiki          9.0776   -0.00001  -0.00025  +0.00055
#ifndef FEDGE_COMMON_MODEL_KV_CACHE_H_
#define FEDGE_COMMON_MODEL_KV_CACHE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/thread_pool.h"
#include "common/model/model_config.h"
#include "common/model/ops.h"
#include "common/tensor/dtype.h"

namespace fedge {

// How a head's key or value is stored: as floats, or in blocks of 32 values with a scale (kQ8:
// Q8_0, 34 bytes; kQ4: Q4_1, which has a minimum too, 20 bytes), the last one of a head padded.
enum class KvType { kF32, kF16, kQ8, kQ4 };

// "f32", "f16", "q8" or "q4"; InvalidArgument for anything else.
absl::StatusOr<KvType> KvTypeFromName(absl::string_view name);

struct KvCacheOptions {
  KvType type = KvType::kF16;
  // How many tokens Truncate can take back at least; layers with a window keep so many more.
  int64_t rewind = 1;
};

// The keys and values of one layer: those of the last `slots` tokens, per head.
class KvLayer {
 public:
  KvLayer(DType type, int64_t kv_heads, int64_t head_dim, int64_t slots);

  // Floats of a decoded row: the head's dimension, rounded up to the type's blocks.
  int64_t row_stride() const { return row_; }
  int64_t bytes() const { return static_cast<int64_t>(keys_.size() + values_.size()); }
  int64_t oldest() const { return oldest_; }  // the first token that is still there

  // Of the tokens [first, first + count), which must be there (CHECK): out [count, row_stride].
  void ReadKeys(int64_t head, int64_t first, int64_t count, float* out) const;
  void ReadValues(int64_t head, int64_t first, int64_t count, float* out) const;
  // Stores the rows [count, KV * head_dim] of the tokens from `first` on; what they replace is
  // gone. False when some value is not finite. Values beyond what f16 holds become the largest it
  // holds.
  bool Write(int64_t first, int64_t count, ConstRows keys, ConstRows values, ThreadPool& pool);
  void Clear() { oldest_ = 0; }

 private:
  int64_t RowOffset(int64_t head, int64_t token) const;
  void Read(const std::vector<uint8_t>& rows, int64_t head, int64_t first, int64_t count,
            float* out) const;
  bool WriteHead(int64_t head, int64_t first, int64_t count, ConstRows from,
                 std::vector<uint8_t>& rows) const;

  DType type_;
  int64_t kv_heads_, head_dim_, slots_, row_, row_bytes_;
  int64_t oldest_ = 0;
  std::vector<uint8_t> keys_, values_;  // [KV][slots] rows
};

// Not thread-safe; of one sequence.
class KvCache {
 public:
  // `capacity` in tokens.
  KvCache(const ModelConfig& config, int64_t capacity,
          const KvCacheOptions& options = KvCacheOptions());

  int64_t size() const { return size_; }  // tokens
  int64_t capacity() const { return capacity_; }
  int64_t bytes() const;
  // Forgets the tokens from `size` on (CHECKs that there are as many). FailedPrecondition, and
  // nothing changes, when a layer with a window has already forgotten what the next token would
  // see; forgetting all is always possible.
  absl::Status Truncate(int64_t size);

 private:
  friend class Transformer;
  int64_t capacity_;
  int64_t size_ = 0;
  std::vector<int64_t> windows_;
  std::vector<KvLayer> layers_;
};

// --- attention of new tokens over a cache's and themselves ---------------------------------------

// As AttentionForward with shape.past tokens in `cache` and shape.length new ones, whose keys k and
// values v [length, KV * head_dim] are used as they are and not stored; batch is 1.
void CachedAttention(const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v,
                     const KvLayer& cache, float* out, float* lse, FloatBuffer& scratch,
                     ThreadPool& pool);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_KV_CACHE_H_
