// Named places in the code where a test can make the process die, fail or wait: before and after
// every durable write and at the edges of the round's states.
//
//   RETURN_IF_ERROR(FEDGE_FAILPOINT("core.receipt"));                       // a state's edge
//   RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN("file.rename", Rename(from, to)));  // around a write
//
// Armed by FEDGE_FAILPOINTS="name=action[:hit][;name=action...]", `hit` counting from 1 (the
// default); an action fires once, with a line on standard error. Actions:
//
//   crash             SIGKILL to the own process, before the write
//   crash-after       after it
//   error[(code)]     the write does not happen; `code` as in "resource_exhausted", else internal
//   error-after[(..)] it happens, and the caller is told that it failed
//   delay(ms)         it happens later
//
// "*=count" fires nothing; FailpointHits then tells how often each place was reached. Unarmed, a
// place costs one relaxed atomic load. Only for .cc files: not in templates or inline functions.
#ifndef FEDGE_COMMON_BASE_FAILPOINT_H_
#define FEDGE_COMMON_BASE_FAILPOINT_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace fedge {

// Arms what `spec` says, instead of what was armed before; "" disarms. InvalidArgument names the
// part that is wrong: an unknown place (none of this program), action, code or hit. Thread-safe.
absl::Status ArmFailpoints(absl::string_view spec);
// ArmFailpoints with the environment variable FEDGE_FAILPOINTS, if there is one.
absl::Status ArmFailpointsFromEnvironment();

struct FailpointHits {
  std::string name;
  uint64_t hits = 0;  // since it was armed; 0 while it is not
};
// All places of this program, sorted by name; places of the same name are one.
std::vector<FailpointHits> ListFailpoints();

// Writes "<name> <hits>" lines to the file that FEDGE_FAILPOINT_HITS names, if it does: for the end
// of a program.
absl::Status SaveFailpointHits();

namespace internal {

// One place. Constant-initialized; lives as long as the program.
class Failpoint {
 public:
  constexpr explicit Failpoint(const char* name) : name_(name) {}
  const char* name() const { return name_; }
  void set_armed(bool armed) { armed_.store(armed, std::memory_order_relaxed); }

  absl::Status Run(absl::FunctionRef<absl::Status()> operation) {
    if (!armed_.load(std::memory_order_relaxed)) [[likely]]
      return operation();
    return RunArmed(operation);
  }

 private:
  absl::Status RunArmed(absl::FunctionRef<absl::Status()> operation);

  const char* const name_;
  std::atomic<bool> armed_{false};
};

}  // namespace internal
}  // namespace fedge

// The linker puts the pointers of all places of a program side by side: that is the list of them.
#define FEDGE_FAILPOINT_RUN(name, operation)                                                     \
  [&]() -> ::absl::Status {                                                                      \
    static constinit ::fedge::internal::Failpoint fedge_failpoint(name);                         \
    [[gnu::section("fedge_failpoints"),                                                          \
      gnu::used]] static ::fedge::internal::Failpoint* fedge_failpoint_entry = &fedge_failpoint; \
    return fedge_failpoint.Run([&]() -> ::absl::Status { return (operation); });                 \
  }()

#define FEDGE_FAILPOINT(name) FEDGE_FAILPOINT_RUN(name, ::absl::OkStatus())

#endif  // FEDGE_COMMON_BASE_FAILPOINT_H_
