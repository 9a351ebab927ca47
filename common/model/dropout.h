// Dropout of what LoRA branches read (Hu et al. 2021, section 4; Srivastava et al. 2014): a value
// is zero with probability `rate`, else divided by 1 - rate.
//
// Which values are dropped is a hash of seed, layer and place. Nothing is stored: the same values
// are dropped when a layer is computed again, on any thread and in whatever parts a batch is
// passed.
#ifndef FEDGE_COMMON_MODEL_DROPOUT_H_
#define FEDGE_COMMON_MODEL_DROPOUT_H_

#include <cstdint>

#include "common/base/thread_pool.h"

namespace fedge {

struct Dropout {
  float rate = 0;               // in [0, 1); 0: none
  uint64_t seed = 0;            // of the step
  int64_t first_sequence = 0;   // of the pass's rows in the step's batch
  int64_t sequence_length = 1;  // rows of a sequence
};

// y [rows, width] = x with values dropped, by the mask of linear `stream`. y may be x.
void DropValues(const Dropout& dropout, uint64_t stream, const float* x, int64_t rows,
                int64_t width, float* y, ThreadPool& pool);
// dx += dy under the same mask.
void AddDroppedGradient(const Dropout& dropout, uint64_t stream, const float* dy, int64_t rows,
                        int64_t width, float* dx, ThreadPool& pool);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_DROPOUT_H_
