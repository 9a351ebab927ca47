// What the kernel counts as this process's memory.
#ifndef FEDGE_COMMON_BASE_PROCESS_MEMORY_H_
#define FEDGE_COMMON_BASE_PROCESS_MEMORY_H_

#include <cstdint>

namespace fedge {

// The most resident memory so far, mapped files included (VmHWM); 0 where it is not known.
int64_t PeakResidentBytes();

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_PROCESS_MEMORY_H_
