#include "tests/robustness/sim_model.h"

#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/aggregation.h"
#include "server/aggregator.h"
#include "server/update_admission.h"

namespace fedge::robustness {
namespace {

LoraAdapter MasterOf(const SimDisk& disk, const RunPlan& plan, uint64_t version) {
  LoraAdapter adapter(plan.lora);
  const std::string& bytes = disk.blobs.at(disk.versions.at(version).master);
  std::memcpy(adapter.values().data(), bytes.data(), bytes.size());
  return adapter;
}

}  // namespace

void SimModel::Told(const std::string& node, uint64_t round, const Digest& digest, bool accepted) {
  const Key key{round, node};
  if (damaged_.count(key) > 0) return;
  const auto known = accepted_.find(key);
  if (accepted && known != accepted_.end() && known->second != digest) {
    Note(absl::StrCat(node, " has two accepted updates in round ", round, " (I1)"));
  }
  if (!accepted && known != accepted_.end() && known->second == digest) {
    Note(absl::StrCat(node, "'s accepted update of round ", round, " was refused later (I2)"));
  }
  if (accepted) accepted_[key] = digest;
}

void SimModel::Served(uint64_t version, uint32_t crc) {
  if (crcs_.emplace(version, crc).first->second != crc) {
    Note(absl::StrCat("version ", version, " was served in two forms (I4)"));
  }
}

// The version's bytes, from the version before and the updates it names, each once.
std::string SimModel::CheckSum(const SimDisk& disk, const VersionRecord& version) const {
  const uint64_t base = version.version - 1;
  const ModelState before{MasterOf(disk, plan_, base), {}, base, {}};
  UpdateAggregator sums(plan_.lora, MakeAggregatorOptions(plan_, base));
  for (const Contribution& part : disk.contributions.at(version.version)) {
    const std::string& bytes = made_.at({version.round, part.node_id}).at(part.digest);
    const auto update = AdmitUpdate(plan_, version.round, base, bytes);
    if (!update.ok() || update->weight != part.weight) {
      return absl::StrCat("version ", version.version, " has a wrong weight or update (I3)");
    }
    const absl::Status added = sums.Accumulate({.layout = &update->layout,
                                                .coordinates = update->update.coordinates,
                                                .values = update->update.values},
                                               update->weight);
    if (!added.ok()) return std::string(added.message());
  }
  const auto next = CloseRound(plan_, before, sums);
  if (next.ok() &&
      next->state.adapter.values() == MasterOf(disk, plan_, version.version).values()) {
    return "";
  }
  return absl::StrCat("version ", version.version, " is not the sum of its updates (I1, I5)");
}

std::string SimModel::CheckVersion(const SimDisk& disk, const VersionRecord& version) const {
  const auto round = disk.rounds.find(version.round);
  if (round == disk.rounds.end() || round->second.state != SimDisk::RoundState::kPublished ||
      round->second.record.base_version + 1 != version.version) {
    return absl::StrCat("version ", version.version, " is of no round that could make it (I3)");
  }
  const std::vector<std::string>& cohort = round->second.record.cohort;
  std::set<std::string> nodes;
  for (const Contribution& part : disk.contributions.at(version.version)) {
    const auto made = made_.find({version.round, part.node_id});
    if (made == made_.end() || made->second.count(part.digest) == 0 ||
        !std::binary_search(cohort.begin(), cohort.end(), part.node_id) ||
        !nodes.insert(part.node_id).second) {
      return absl::StrCat("version ", version.version, " holds what ", part.node_id,
                          " did not send, or twice (I1, I6)");
    }
    const auto told = accepted_.find({version.round, part.node_id});
    if (told != accepted_.end() && told->second != part.digest) {
      return absl::StrCat(part.node_id, " was told of another update (I1)");
    }
  }
  if (version.counts.accepted != static_cast<int64_t>(nodes.size())) {
    return absl::StrCat("version ", version.version, " counts wrongly");
  }
  for (const auto& [key, digest] : accepted_) {
    if (key.first != version.round || nodes.count(key.second) > 0) continue;
    if (damaged_.count(key) > 0) continue;
    return absl::StrCat("the acknowledged update of ", key.second, " for round ", key.first,
                        " is lost (I2)");
  }
  return CheckSum(disk, version);
}

std::string SimModel::Check(const SimDisk& disk) const {
  if (!problem_.empty()) return problem_;
  uint64_t expected = 0;
  for (const auto& [number, version] : disk.versions) {
    if (number != expected++) return absl::StrCat("version ", number, " after a gap (I3)");
    if (number == 0) continue;
    const std::string problem = CheckVersion(disk, version);
    if (!problem.empty()) return problem;
  }
  for (const auto& [key, digest] : accepted_) {
    if (disk.rounds.count(key.first) == 0) {
      return absl::StrCat("round ", key.first, " accepted updates and is unknown (I2)");
    }
  }
  return "";
}

}  // namespace fedge::robustness
