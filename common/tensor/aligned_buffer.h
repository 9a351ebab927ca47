// Scratch memory of the kernels: aligned for vectors, grows, never shrinks. Not thread-safe.
#ifndef FEDGE_COMMON_TENSOR_ALIGNED_BUFFER_H_
#define FEDGE_COMMON_TENSOR_ALIGNED_BUFFER_H_

#include <hwy/aligned_allocator.h>

#include <cstdint>

namespace fedge {

class AlignedBuffer {
 public:
  // At least `count` values, undefined; invalidates what Get returned before.
  template <class T>
  T* Get(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (bytes > size_) {
      bytes_.reset();  // first, so that both never exist at once
      bytes_ = hwy::AllocateAligned<uint8_t>(bytes);
      size_ = bytes;
    }
    return reinterpret_cast<T*>(bytes_.get());
  }

 private:
  hwy::AlignedFreeUniquePtr<uint8_t[]> bytes_;
  size_t size_ = 0;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_TENSOR_ALIGNED_BUFFER_H_
