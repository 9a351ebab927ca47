// What a bystander of a simulated run knows, and what must therefore be true of its disk.
#ifndef FEDGE_TESTS_ROBUSTNESS_SIM_MODEL_H_
#define FEDGE_TESTS_ROBUSTNESS_SIM_MODEL_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "server/run_plan.h"
#include "tests/robustness/sim_store.h"

namespace fedge::robustness {

class SimModel {
 public:
  explicit SimModel(const RunPlan& plan) : plan_(plan) {}

  // A device made this update.
  void Made(const std::string& node, uint64_t round, const std::string& bytes) {
    made_[{round, node}][Sha256Of(bytes)] = bytes;
  }
  // The server answered so, while it lived.
  void Told(const std::string& node, uint64_t round, const Digest& digest, bool accepted);
  void Served(uint64_t version, uint32_t crc);
  // Its disk was damaged there: the promise is off.
  void Damaged(const std::string& node, uint64_t round) {
    damaged_.insert({round, node});
    accepted_.erase({round, node});
  }

  // The server made this of the round's updates, and asks whether it is good enough.
  void Candidate(uint64_t round, const Digest& values);
  static bool Passes(const Digest& values) { return values.bytes[0] % 4 != 0; }

  // Checks all of a finished run; the first violation, or "".
  std::string Check(const SimDisk& disk) const;
  const std::string& problem() const { return problem_; }  // found on the way

 private:
  using Key = std::pair<uint64_t, std::string>;  // round, node
  void Note(const std::string& problem) {
    if (problem_.empty()) problem_ = problem;
  }
  std::string CheckDecisions(const SimDisk& disk) const;
  std::string CheckRollback(const SimDisk& disk, const VersionRecord& version) const;
  std::string CheckVersion(const SimDisk& disk, const VersionRecord& version) const;
  std::string CheckPart(const SimDisk& disk, uint64_t base, const Contribution& part) const;
  std::string CheckSum(const SimDisk& disk, const VersionRecord& version) const;
  // Each acknowledged update is in one version, unless it is void.
  std::string CheckAcknowledged(const SimDisk& disk) const;

  static bool IsVoid(const SimDisk& disk, const Key& key);
  static std::string WhereItWas(const SimDisk& disk, const Key& key);

  const RunPlan& plan_;
  std::map<Key, std::map<Digest, std::string>> made_;
  std::map<Key, Digest> accepted_;
  std::set<Key> damaged_;
  std::map<uint64_t, Digest> candidates_;  // the last one of each round
  std::map<uint64_t, uint32_t> crcs_;
  std::string problem_;
};

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_SIM_MODEL_H_
