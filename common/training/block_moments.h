// Adam's two moments in a byte each: what lets the optimizer of a large adapter fit a small device.
//
// Blocks of 256 values share an fp32 scale, the block's largest magnitude (Dettmers, Lewis,
// Shleifer, Zettlemoyer 2022). A byte is a logarithmic code with 8 steps an octave that becomes
// linear near zero, as in mu-law: 15 octaves and a sign for the first moment, 30 for the second,
// which is of the order of its square, so that neither of the two vanishes before the other.
//
// Values are rounded up or down at random, in proportion. The second moment moves by a thousandth a
// step where codes are an eighth apart: rounding to nearest would keep it where it was for ever.
// The randomness is a hash of (step, position): the same state for the same history.
#ifndef FEDGE_COMMON_TRAINING_BLOCK_MOMENTS_H_
#define FEDGE_COMMON_TRAINING_BLOCK_MOMENTS_H_

#include <cstdint>
#include <vector>

#include "common/base/byte_io.h"

namespace fedge {

// The scalars of one AdamW step.
struct AdamWScalars {
  float beta1 = 0, one_minus_beta1 = 0;
  float beta2 = 0, one_minus_beta2 = 0;
  float step_size = 0;        // learning rate / (1 - beta1^t)
  float root_correction = 0;  // 1 / sqrt(1 - beta2^t)
  float epsilon = 0;
  float decay = 1;  // 1 - learning rate * weight decay
};

class BlockMoments {
 public:
  static constexpr int64_t kBlock = 256;

  // `position`: of the first value in the whole of the parameters, for the randomness.
  BlockMoments(int64_t size, int64_t position);

  // Decodes a block, steps, updates `values` with the exact new moments and encodes these. Both
  // arrays have the object's size.
  void Step(const AdamWScalars& scalars, int64_t step, const float* gradient, float* values);

  static int64_t Bytes(int64_t size);
  // Codes and scales, Bytes(size) of them; Read: false, and nothing changed, when fewer are left.
  void Write(ByteWriter& writer) const;
  bool Read(ByteReader& reader);

  // The moments as the next step will see them.
  std::vector<float> FirstMoment() const;
  std::vector<float> SecondMoment() const;

 private:
  int64_t position_;
  std::vector<uint8_t> m_, v_;
  std::vector<float> m_scale_, v_scale_;  // of each block
};

}  // namespace fedge

#endif  // FEDGE_COMMON_TRAINING_BLOCK_MOMENTS_H_
