#include "client/background.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>

namespace fedge {
namespace {

// A quarter of what a program at normal priority gets where both want all; a service manager may
// ask for less (Nice=19).
constexpr int kNiceness = 10;
// From linux/ioprio.h, which is not everywhere: best effort, the lowest level. The idle class could
// starve a checkpoint for ever.
constexpr int kIoprioWhoProcess = 1;
constexpr int kIoprioLowBestEffort = 2 << 13 | 7;
constexpr int kOomScoreAdjust = 500;

}  // namespace

void RunInBackground() {
  if (getpriority(PRIO_PROCESS, 0) < kNiceness) setpriority(PRIO_PROCESS, 0, kNiceness);
  syscall(SYS_ioprio_set, kIoprioWhoProcess, 0, kIoprioLowBestEffort);
  std::ofstream("/proc/self/oom_score_adj") << kOomScoreAdjust;
}

}  // namespace fedge
