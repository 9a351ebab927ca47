// One simulated run: the server's real core (coordinator, recovery, upload buffer), devices that
// transfer as client/transfer.h does, a network and a disk that an adversary has in hand; all in
// one thread, in virtual time, from one seed.
#ifndef FEDGE_TESTS_ROBUSTNESS_SIM_WORLD_H_
#define FEDGE_TESTS_ROBUSTNESS_SIM_WORLD_H_

#include <cstdint>
#include <string>

namespace fedge::robustness {

struct SimResult {
  std::string problem;  // empty: all invariants hold
  uint64_t versions = 0;
  uint64_t abandoned = 0;
  uint64_t refused = 0;    // rounds, by the quality gate that every second run has
  uint64_t rollbacks = 0;  // by an operator, acknowledged
  uint64_t restarts = 0;
  uint64_t writes = 0;
  uint64_t accepted = 0;  // receipts
  uint64_t folded = 0;    // updates of earlier rounds in versions
  uint64_t damaged = 0;   // stored updates of an open round that a restart found damaged
  double virtual_seconds = 0;
};

SimResult Simulate(uint64_t seed);

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_SIM_WORLD_H_
