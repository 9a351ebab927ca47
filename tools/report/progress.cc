#include "tools/report/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace fedge {
namespace {

constexpr int kColumnsUnknown = 80;

// At most `columns` characters of `text`, never a part of a UTF-8 sequence.
absl::string_view Fit(absl::string_view text, int columns) {
  int shown = 0;
  size_t i = 0;
  while (i < text.size()) {
    size_t next = i + 1;
    while (next < text.size() && (static_cast<uint8_t>(text[next]) & 0xC0) == 0x80) ++next;
    if (++shown > columns) break;
    i = next;
  }
  return text.substr(0, i);
}

}  // namespace

int TerminalColumns(int fd) {
  if (isatty(fd) == 0) return 0;
  winsize size = {};
  if (ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return kColumnsUnknown;
  return size.ws_col;
}

ProgressLine::ProgressLine(std::ostream& out, Clock& clock, int columns)
    : out_(out),
      clock_(clock),
      columns_(columns),
      interval_(columns > 0 ? absl::Milliseconds(100) : absl::Seconds(10)) {}

ProgressLine::~ProgressLine() {
  if (!on_screen_.empty()) out_ << "\n" << std::flush;
}

void ProgressLine::Show(absl::string_view text) {
  held_back_.clear();
  if (columns_ == 0) {
    out_ << text << "\n" << std::flush;
    return;
  }
  on_screen_ = std::string(Fit(text, columns_ - 1));
  out_ << "\r" << on_screen_ << "\x1b[K" << std::flush;
}

void ProgressLine::Update(absl::string_view text) {
  const absl::Duration now = clock_.Monotonic();
  if (now - shown_at_ < interval_) {
    held_back_ = std::string(text);
    return;
  }
  shown_at_ = now;
  Show(text);
}

void ProgressLine::Print(absl::string_view text) {
  if (on_screen_.empty()) {
    out_ << text << "\n" << std::flush;
    return;
  }
  out_ << "\r" << text << "\x1b[K\n" << on_screen_ << std::flush;
}

void ProgressLine::Finish() {
  if (!held_back_.empty()) Show(std::string(held_back_));
  if (!on_screen_.empty()) out_ << "\n" << std::flush;
  on_screen_.clear();
}

std::string FormatCount(int64_t count) {
  const bool negative = count < 0;
  std::string digits =
      absl::StrCat(negative ? 0 - static_cast<uint64_t>(count) : static_cast<uint64_t>(count));
  for (size_t i = digits.size(); i > 3;) {
    i -= 3;
    digits.insert(i, 1, ',');
  }
  return absl::StrCat(negative ? "-" : "", digits);
}

std::string FormatBytes(uint64_t bytes) {
  if (bytes < 1000) return absl::StrCat(bytes, " B");
  constexpr absl::string_view kUnits[] = {"kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes) / 1000;
  size_t unit = 0;
  while (value >= 999.95 && unit + 1 < std::size(kUnits)) {
    value /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string FormatRate(double per_second, absl::string_view unit) {
  if (!std::isfinite(per_second) || per_second < 0) per_second = 0;
  const double shown = std::min(per_second, 9e15);
  if (shown < 10) return absl::StrFormat("%.1f %s/s", shown, unit);
  return absl::StrCat(FormatCount(static_cast<int64_t>(std::llround(shown))), " ", unit, "/s");
}

std::string FormatTimeSpan(absl::Duration duration) {
  if (duration == absl::InfiniteDuration()) return "unknown";
  const int64_t seconds =
      std::max<int64_t>(0, absl::ToInt64Seconds(duration + absl::Milliseconds(500)));
  if (seconds < 60) return absl::StrCat(seconds, " s");
  if (seconds < 3600) return absl::StrFormat("%d min %02d s", seconds / 60, seconds % 60);
  return absl::StrFormat("%d h %02d min", seconds / 3600, seconds % 3600 / 60);
}

}  // namespace fedge
