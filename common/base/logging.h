// One line a fact, on standard error, through spdlog: "2026-11-20T17:40:00Z I round 3: ...".
// Never holds text of a device's data.
#ifndef FEDGE_COMMON_BASE_LOGGING_H_
#define FEDGE_COMMON_BASE_LOGGING_H_

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace fedge {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

// Lines below `level` are dropped. Default kInfo.
void SetLogLevel(LogLevel level);
void LogLine(LogLevel level, absl::string_view line);

template <typename... Args>
void LogInfo(const Args&... args) {
  LogLine(LogLevel::kInfo, absl::StrCat(args...));
}
template <typename... Args>
void LogWarning(const Args&... args) {
  LogLine(LogLevel::kWarning, absl::StrCat(args...));
}
template <typename... Args>
void LogError(const Args&... args) {
  LogLine(LogLevel::kError, absl::StrCat(args...));
}

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_LOGGING_H_
