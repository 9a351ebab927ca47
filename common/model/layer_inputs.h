// Each layer's input from the forward pass to the backward one.
//
// A layer that keeps its activations has its input in fp32. One that is computed again may have it
// in bf16: half the memory, and its gradients become those at an input rounded by up to 2^-9. What
// the forward pass itself computes is fp32 in either case.
#ifndef FEDGE_COMMON_MODEL_LAYER_INPUTS_H_
#define FEDGE_COMMON_MODEL_LAYER_INPUTS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/model/ops.h"

namespace fedge {

class LayerInputs {
 public:
  LayerInputs(size_t layers, ThreadPool* pool)
      : pool_(*pool), exact_(layers), rounded_(layers), rounded_sizes_(layers) {}

  // A pass over inputs of `size` values that only goes forward: two buffers in turn.
  void BeginForward(int64_t size);
  // One that comes back: layers below `first_exact` are kept in bf16, the others in fp32.
  void BeginGradient(int64_t size, size_t first_exact);

  // Where layer `i`'s input is computed, or with i = layers the last output; valid until i + 2.
  float* Make(size_t i);
  // The input of layer `i` was computed and is to be kept.
  void Keep(size_t i);
  // The kept input of layer `i`, until the next call. From the last layer down.
  const float* Restore(size_t i);

  // Most bytes of a gradient pass, for the memory plan.
  static int64_t Bytes(int64_t size, int64_t layers, int64_t first_exact);

 private:
  ThreadPool& pool_;
  int64_t size_ = 0;
  size_t first_exact_ = 0;
  FloatBuffer stream_[2];
  std::vector<FloatBuffer> exact_;
  std::vector<std::unique_ptr<uint16_t[]>> rounded_;
  std::vector<int64_t> rounded_sizes_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_LAYER_INPUTS_H_
