// Memory for tables that are hopped through: an entry here, one a few hundred bytes on.
#ifndef FEDGE_COMMON_BASE_LARGE_PAGE_ALLOCATOR_H_
#define FEDGE_COMMON_BASE_LARGE_PAGE_ALLOCATOR_H_

#include <cstddef>
#include <vector>

namespace fedge {

namespace internal {
void* AllocateLargePages(size_t bytes);
void FreeLargePages(void* memory);
}  // namespace internal

// Starts on a cache line, so that 64 bytes never take two. From 2 MiB on it starts on a large page
// and asks the kernel for such: with pages of 4 KiB each hop would wait for the page table too.
template <typename T>
struct LargePageAllocator {
  using value_type = T;
  LargePageAllocator() = default;
  template <typename U>
  LargePageAllocator(const LargePageAllocator<U>& /*other*/) {}  // NOLINT: as std::allocator

  T* allocate(size_t n) { return static_cast<T*>(internal::AllocateLargePages(n * sizeof(T))); }
  void deallocate(T* memory, size_t /*n*/) { internal::FreeLargePages(memory); }
  friend bool operator==(const LargePageAllocator&, const LargePageAllocator&) { return true; }
};

template <typename T>
using LargePageVector = std::vector<T, LargePageAllocator<T>>;

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_LARGE_PAGE_ALLOCATOR_H_
