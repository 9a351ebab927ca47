// Progress of a long command on standard error: one line that is rewritten in place on a terminal,
// plain lines now and then elsewhere.
#ifndef FEDGE_TOOLS_REPORT_PROGRESS_H_
#define FEDGE_TOOLS_REPORT_PROGRESS_H_

#include <cstdint>
#include <ostream>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/clock.h"

namespace fedge {

// Columns of the terminal behind file descriptor `fd`; 0 when it is none.
int TerminalColumns(int fd);

// Not thread-safe. The destructor ends an open terminal line.
class ProgressLine {
 public:
  // `columns`: of the terminal behind `out`, 0 for a file or a pipe.
  ProgressLine(std::ostream& out, Clock& clock, int columns);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // The state now. Shown at most ten times a second on a terminal, every ten seconds elsewhere;
  // the first is always shown.
  void Update(absl::string_view text);
  // A line that stays, above the one being rewritten.
  void Print(absl::string_view text);
  // Shows the last update if it was held back, and ends the line.
  void Finish();

 private:
  void Show(absl::string_view text);
  std::ostream& out_;
  Clock& clock_;
  int columns_;
  absl::Duration interval_;
  absl::Duration shown_at_ = -absl::InfiniteDuration();
  std::string held_back_;  // the last update, not shown yet
  std::string on_screen_;  // what the open terminal line shows
};

std::string FormatCount(int64_t count);                             // "1,234,567"
std::string FormatBytes(uint64_t bytes);                            // "999 B", "3.1 MB" (10^6)
std::string FormatRate(double per_second, absl::string_view unit);  // "1,234 tokens/s"
std::string FormatTimeSpan(absl::Duration duration);  // "8 s", "2 min 05 s", "1 h 02 min"

}  // namespace fedge

#endif  // FEDGE_TOOLS_REPORT_PROGRESS_H_
