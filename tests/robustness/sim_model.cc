#include "tests/robustness/sim_model.h"

#include <algorithm>
#include <cmath>
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

// The version's bytes, from the version before and the updates it names, each once; of one of an
// earlier version, what its age leaves of it.
std::string SimModel::CheckSum(const SimDisk& disk, const VersionRecord& version) const {
  const uint64_t base = version.version - 1;
  const ModelState before{MasterOf(disk, plan_, base), {}, base, {}};
  UpdateAggregator sums(plan_.lora, MakeAggregatorOptions(plan_, base));
  for (const Contribution& part : disk.contributions.at(version.version)) {
    const std::string& bytes = made_.at({part.round, part.node_id}).at(part.digest);
    const uint64_t trained = disk.rounds.at(part.round).record.base_version;
    auto update = AdmitUpdate(plan_, part.round, trained, bytes);
    if (!update.ok() || update->weight != part.weight) {
      return absl::StrCat("version ", version.version, " has a wrong weight or update (I3)");
    }
    const double factor = 1 / std::sqrt(1 + static_cast<double>(base - trained));
    for (float& value : update->update.values) {
      value = static_cast<float>(static_cast<double>(value) * factor);
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

std::string SimModel::CheckPart(const SimDisk& disk, uint64_t base,
                                const Contribution& part) const {
  const Key key{part.round, part.node_id};
  const auto made = made_.find(key);
  const auto round = disk.rounds.find(part.round);
  if (made == made_.end() || made->second.count(part.digest) == 0 || round == disk.rounds.end()) {
    return absl::StrCat(part.node_id, " did not send what is in version ", base + 1, " (I6)");
  }
  const RoundRecord& record = round->second.record;
  if (!std::binary_search(record.cohort.begin(), record.cohort.end(), part.node_id)) {
    return absl::StrCat(part.node_id, " was not in round ", part.round, " (I6)");
  }
  if (record.base_version > base ||
      base - record.base_version > static_cast<uint64_t>(plan_.pace.max_staleness)) {
    return absl::StrCat("version ", base + 1, " has an update of version ", record.base_version);
  }
  const auto told = accepted_.find(key);
  if (told != accepted_.end() && told->second != part.digest) {
    return absl::StrCat(part.node_id, " was told of another update (I1)");
  }
  return "";
}

std::string SimModel::CheckVersion(const SimDisk& disk, const VersionRecord& version) const {
  const auto round = disk.rounds.find(version.round);
  if (round == disk.rounds.end() || round->second.state != SimDisk::RoundState::kPublished ||
      round->second.record.base_version + 1 != version.version) {
    return absl::StrCat("version ", version.version, " is of no round that could make it (I3)");
  }
  std::set<Key> parts;
  int64_t own = 0;
  for (const Contribution& part : disk.contributions.at(version.version)) {
    const std::string problem = CheckPart(disk, version.version - 1, part);
    if (!problem.empty()) return problem;
    if (!parts.insert({part.round, part.node_id}).second) {
      return absl::StrCat("version ", version.version, " has ", part.node_id, " twice (I1)");
    }
    own += part.round == version.round;
  }
  const RoundCounts& counts = version.counts;
  if (counts.accepted != own || counts.folded != static_cast<int64_t>(parts.size()) - own) {
    return absl::StrCat("version ", version.version, " counts wrongly");
  }
  return CheckSum(disk, version);
}

std::string SimModel::CheckAcknowledged(const SimDisk& disk) const {
  std::map<Key, int> counted;
  for (const auto& [version, parts] : disk.contributions) {
    for (const Contribution& part : parts) ++counted[{part.round, part.node_id}];
  }
  for (const auto& [key, times] : counted) {
    if (times == 1) continue;
    return absl::StrCat("the update of ", key.second, " for round ", key.first, " is in ", times,
                        " versions (I1)");
  }
  for (const auto& [key, digest] : accepted_) {
    if (counted.count(key) > 0 || damaged_.count(key) > 0) continue;
    const auto record = disk.updates.find(key);
    const auto round =
        record == disk.updates.end() ? disk.rounds.end() : disk.rounds.find(record->second.counted);
    if (round != disk.rounds.end() && round->second.state == SimDisk::RoundState::kAbandoned) {
      continue;
    }
    return absl::StrCat("the acknowledged update of ", key.second, " for round ", key.first,
                        " is lost (I2)");
  }
  return "";
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
  return CheckAcknowledged(disk);
}

}  // namespace fedge::robustness
