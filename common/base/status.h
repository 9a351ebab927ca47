// Status plumbing: the two macros everybody uses, and FEDGE_CHECK for our own bugs.
//
// absl::Status is for what the outside world can cause (files, peers, arguments); FEDGE_CHECK is
// for what only a bug of ours can cause and must be unreachable from bytes we received.
#ifndef FEDGE_COMMON_BASE_STATUS_H_
#define FEDGE_COMMON_BASE_STATUS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace fedge {

// Returns `status` with "context: " before its message; OK stays OK.
absl::Status Annotate(const absl::Status& status, absl::string_view context);

// Exit code of a program that ends with `status` (0 for OK). Stable, documented in the README:
// 2 bad usage or input, 3 not found, 4 already exists / wrong state, 5 no room or permission,
// 6 server not reachable or too slow, 1 anything else.
int ExitCode(const absl::Status& status);

namespace internal {
[[noreturn]] void CheckFailed(const char* condition, const char* file, int line,
                              absl::string_view message);
}  // namespace internal
}  // namespace fedge

// Ends the process with the condition and `...` (StrCat arguments) when `condition` is false.
#define FEDGE_CHECK(condition, ...)                                                  \
  do {                                                                               \
    if (!(condition)) [[unlikely]] {                                                 \
      ::fedge::internal::CheckFailed(#condition, __FILE__, __LINE__,                 \
                                     ::absl::StrCat("" __VA_OPT__(, ) __VA_ARGS__)); \
    }                                                                                \
  } while (false)

#define RETURN_IF_ERROR(expression)             \
  do {                                          \
    ::absl::Status fedge_status = (expression); \
    if (!fedge_status.ok()) [[unlikely]] {      \
      return fedge_status;                      \
    }                                           \
  } while (false)

#define FEDGE_CONCAT_INNER(a, b) a##b
#define FEDGE_CONCAT(a, b) FEDGE_CONCAT_INNER(a, b)
#define FEDGE_ASSIGN_OR_RETURN_IMPL(result, target, expression) \
  auto result = (expression);                                   \
  if (!result.ok()) [[unlikely]] {                              \
    return result.status();                                     \
  }                                                             \
  target = std::move(result).value()

// ASSIGN_OR_RETURN(auto x, F()); a target with commas needs parentheses or a using-declaration.
#define ASSIGN_OR_RETURN(target, expression) \
  FEDGE_ASSIGN_OR_RETURN_IMPL(FEDGE_CONCAT(fedge_result_, __LINE__), target, expression)

#endif  // FEDGE_COMMON_BASE_STATUS_H_
