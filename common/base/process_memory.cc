#include "common/base/process_memory.h"

#include <cstdio>

namespace fedge {

int64_t PeakResidentBytes() {
  // Not through Env: /proc is no file system that could fail or be faked. getrusage would do, but
  // counts a parent's memory from before exec.
  std::FILE* const file = std::fopen("/proc/self/status", "r");
  if (file == nullptr) return 0;
  char line[256];
  long long kibibytes = 0;
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    if (std::sscanf(line, "VmHWM: %lld kB", &kibibytes) == 1) break;
  }
  std::fclose(file);
  return kibibytes * 1024;
}

}  // namespace fedge
