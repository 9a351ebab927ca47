// One run of the real server with twenty toy devices and one fault, and what can be said of it
// afterwards from the devices' journal and the server's database.
#ifndef FEDGE_TESTS_ROBUSTNESS_RUN_CASE_H_
#define FEDGE_TESTS_ROBUSTNESS_RUN_CASE_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "fedge/v1/config.pb.h"

namespace fedge::robustness {

// Where the fault is:
//   server:<name>=<action>:<hit>    a failpoint of the server
//   recovery:<name>=<action>:<hit>  of a server that continues an open round
//   damaged:<name>=<action>:<hit>   of one that moreover finds an accepted update damaged
//   operated:<name>=<action>:<hit>  of a server with runs that an operator creates, pauses, stops
//   joining:<name>=<action>:<hit>   of a server that devices join, over TLS
//   fleet:<name>=<action>:<hit>     of the devices (all of them are one process)
//   syscall:<call>:<hit>            SIGKILL to the server instead of a thread's `hit`th such call
struct Case {
  std::string target;  // "": no fault
  std::string fault;   // after the colon
  std::string Text() const { return target + ":" + fault; }
};
// InvalidArgument: not of that form.
absl::StatusOr<Case> ParseCase(absl::string_view text);

// What the server published.
struct PublishedVersion {
  uint64_t round = 0;
  std::string encoded, master;       // hexadecimal digests
  std::string parent;                // its number
  std::vector<std::string> updates;  // "node digest weight", sorted
  std::string crc;                   // what the devices were told of its values
  friend bool operator==(const PublishedVersion&, const PublishedVersion&) = default;
};

struct CaseResult {
  bool injected = false;  // the fault happened
  int64_t lost = 0;       // acknowledged updates that are in no version
  int64_t doubled = 0;  // versions with the right updates and the wrong sum, updates counted twice
  std::string problem;  // empty: all invariants hold
  std::map<uint64_t, PublishedVersion> versions;
  // Of runs that count: how often each failpoint was reached.
  std::map<std::string, uint64_t> server_hits, fleet_hits;
  std::map<std::string, uint64_t> syscalls;  // most of one thread
};

struct Programs {
  std::string server;  // fedge-server
  std::string self;    // this program: it is the fleet, too
  std::string model;   // a tiny one
  bool keep = false;   // the folder of a run that failed
};

enum class Counting { kNothing, kFailpoints, kRecovery, kDamaged, kOperated, kJoining, kSyscalls };

// `reference`: what a run without faults published; null: this is one. The state is in memory
// (/dev/shm): a killed process loses nothing that the kernel has.
CaseResult RunCase(const Programs& programs, const Case& fault, const CaseResult* reference,
                   Counting counting = Counting::kNothing);

// Of the file that a run with Counting::kSyscalls traces: also which calls there are.
const std::vector<std::string>& TracedCalls();

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_RUN_CASE_H_
