// How the server's processes want their memory managed.
#ifndef FEDGE_SERVER_ALLOCATOR_H_
#define FEDGE_SERVER_ALLOCATOR_H_

#include <malloc.h>

namespace fedge {

// Each update is decoded into vectors of some hundred KB to some MB. glibc would map and unmap them
// one by one, and the kernel clear each page anew. Call it first, once.
inline void KeepMemoryForUpdates() {
#ifdef M_MMAP_THRESHOLD
  mallopt(M_MMAP_THRESHOLD, 64 << 20);
  mallopt(M_TRIM_THRESHOLD, 128 << 20);  // bytes free at the end of the heap, kept at most
#endif
}

}  // namespace fedge

#endif  // FEDGE_SERVER_ALLOCATOR_H_
