#include "tests/robustness/sim_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "fedge/v1/registry.pb.h"
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

// What devices hold at a version, as SHA-256.
std::string ValuesOf(const VersionRecord& version) {
  v1::VersionManifest manifest;
  return manifest.ParseFromString(version.manifest) ? manifest.values_sha256() : "";
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

void SimModel::Candidate(uint64_t round, const Digest& values) {
  const auto [known, is_new] = candidates_.emplace(round, values);
  if (!is_new && known->second != values && damaged_.empty()) {
    Note(absl::StrCat("round ", round, " has two candidates (I12)"));
  }
  known->second = values;
}

// What was published passed, what was refused did not (or an operator made it void), and each
// decision is on record once (I12).
std::string SimModel::CheckDecisions(const SimDisk& disk) const {
  const absl::Status chain = VerifyAudit({}, disk.audit);
  if (!chain.ok()) return std::string(chain.message());
  size_t refused = 0;
  for (const auto& [number, round] : disk.rounds) {
    if (round.state != SimDisk::RoundState::kRefused) continue;
    ++refused;
    const bool by_operator = absl::StartsWith(round.reason, "rolled back to ") ||
                             round.reason == "the run was stopped" ||
                             absl::StrContains(round.reason, "nodes that were asked");
    if (!by_operator && Passes(candidates_.at(number))) {
      return absl::StrCat("round ", number, " was refused and had passed (I12)");
    }
  }
  std::vector<PublishedVersion> published;
  for (const auto& [number, version] : disk.versions) {
    published.push_back({plan_.run_id, number, Sha256Of(version.manifest)});
    if (version.round == 0 || !plan_.gate.enabled) continue;
    const Digest& values = candidates_.at(version.round);
    if (ValuesOf(version) != values.Raw() || !Passes(values)) {
      return absl::StrCat("version ", number, " is not what passed (I12)");
    }
  }
  const absl::Status covered = VerifyPublished(disk.audit, published);
  if (!covered.ok()) return std::string(covered.message());
  std::map<std::string, size_t> actions;
  for (const AuditRecord& record : disk.audit) ++actions[record.entry.action];
  if (actions["refuse"] == refused && actions["start"] == 1 &&
      actions["start"] + actions["publish"] + actions["rollback"] == disk.versions.size()) {
    return "";
  }
  return "decisions are not on record once each (I12)";
}

// A rollback is what it names, to the bit: on the server and on devices (I13).
std::string SimModel::CheckRollback(const SimDisk& disk, const VersionRecord& version) const {
  const auto origin = disk.versions.find(*version.origin);
  if (*version.origin < version.version && origin != disk.versions.end() &&
      origin->second.master == version.master && ValuesOf(origin->second) == ValuesOf(version) &&
      disk.contributions.at(version.version).empty()) {
    return "";
  }
  return absl::StrCat("version ", version.version, " is not version ", *version.origin,
                      " again (I13)");
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
  for (uint64_t next = record.base_version + 1; next <= base; ++next) {
    if (!disk.versions.at(next).origin) continue;
    return absl::StrCat("version ", base + 1, " has an update from before the rollback ", next,
                        " (I13)");
  }
  const auto told = accepted_.find(key);
  if (told != accepted_.end() && told->second != part.digest) {
    return absl::StrCat(part.node_id, " was told of another update (I1)");
  }
  return "";
}

std::string SimModel::CheckVersion(const SimDisk& disk, const VersionRecord& version) const {
  if (version.origin) return CheckRollback(disk, version);
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

// Nothing but a refusal of what it went into, a rollback or the end of the run makes an
// acknowledged update void: a round that is abandoned for want of updates leaves its own to the
// next.
bool SimModel::IsVoid(const SimDisk& disk, const Key& key) {
  const auto record = disk.updates.find(key);
  if (record == disk.updates.end()) return false;
  const uint64_t base = disk.rounds.at(key.first).record.base_version;
  const auto round = disk.rounds.find(record->second.counted);
  if (round == disk.rounds.end()) return disk.state != RunState::kRunning;  // it came to no round
  const bool is_abandoned = round->second.state == SimDisk::RoundState::kAbandoned;
  if (round->second.state == SimDisk::RoundState::kRefused ||
      (is_abandoned && (absl::StartsWith(round->second.reason, "rolled back to ") ||
                        round->second.reason == "the run was stopped"))) {
    return true;
  }
  for (uint64_t next = base + 1; next <= round->second.record.base_version; ++next) {
    if (disk.versions.at(next).origin) return true;
  }
  return false;
}

std::string SimModel::WhereItWas(const SimDisk& disk, const Key& key) {
  const auto record = disk.updates.find(key);
  if (record == disk.updates.end()) return ": it is not on disk";
  const uint64_t counted = record->second.counted;
  const auto round = disk.rounds.find(counted);
  const bool is_known = round != disk.rounds.end();
  return absl::StrCat(": it counts in round ", counted, " of ", disk.rounds.size(), ", state ",
                      is_known ? static_cast<int>(round->second.state) : -1, " ",
                      is_known ? round->second.reason : "");
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
    if (IsVoid(disk, key)) continue;
    return absl::StrCat("the acknowledged update of ", key.second, " for round ", key.first,
                        " is lost (I2)", WhereItWas(disk, key));
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
  const std::string decisions = CheckDecisions(disk);
  if (!decisions.empty()) return decisions;
  return CheckAcknowledged(disk);
}

}  // namespace fedge::robustness
