#include "common/base/large_page_allocator.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace fedge::internal {

void* AllocateLargePages(size_t bytes) {
  constexpr size_t kLine = 64;
  constexpr size_t kLargePage = size_t{2} << 20;
  const size_t alignment = bytes >= kLargePage ? kLargePage : kLine;
  const size_t size = (bytes + alignment - 1) / alignment * alignment;
  void* const memory = std::aligned_alloc(alignment, size);
  if (memory == nullptr || size < bytes) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (alignment == kLargePage) madvise(memory, size, MADV_HUGEPAGE);  // a hint: it may fail
#endif
  return memory;
}

void FreeLargePages(void* memory) { std::free(memory); }

}  // namespace fedge::internal
