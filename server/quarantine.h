// Nodes whose updates were rejected time and again are not drawn for a while.
//
// A node's row of rejected updates ends with an accepted one; neither late updates nor failed tasks
// count. From the run.admission.quarantine_after-th on, each rejected update of round r keeps the
// node out of the rounds up to r + quarantine_rounds: after that it gets one try at a time until an
// update of it is accepted.
#ifndef FEDGE_SERVER_QUARANTINE_H_
#define FEDGE_SERVER_QUARANTINE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/string_view.h"

namespace fedge {

// Not thread-safe. The state follows from the verdicts alone, so that a restarted server notes
// those it stored. Memory: the nodes whose last update was rejected.
class Quarantine {
 public:
  // `after` 0: nobody is kept out.
  Quarantine(int64_t after, int64_t rounds) : after_(after), rounds_(rounds) {}

  // A verdict on the bytes of an update, in the order of rounds.
  void Note(absl::string_view node, uint64_t round, bool accepted);
  bool Holds(absl::string_view node, uint64_t round) const;
  // "quarantined until round 17: 3 updates in a row were rejected"; empty unless it Holds.
  std::string Reason(absl::string_view node, uint64_t round) const;

 private:
  struct Record {
    int64_t rejected = 0;     // in a row
    uint64_t last_round = 0;  // that it is kept out of
  };

  const int64_t after_;
  const int64_t rounds_;
  std::map<std::string, Record, std::less<>> records_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_QUARANTINE_H_
