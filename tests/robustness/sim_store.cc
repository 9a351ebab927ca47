#include "tests/robustness/sim_store.h"

#include <algorithm>

#include "common/base/status.h"
#include "server/decisions.h"

namespace fedge::robustness {

absl::Status SimStore::Write(absl::FunctionRef<void()> operation) {
  if (failed_) return absl::FailedPreconditionError("failed earlier");
  const absl::Status status = adversary_.Write(operation);
  failed_ = !status.ok() && !absl::IsResourceExhausted(status);
  return status;
}

absl::StatusOr<std::vector<VersionRecord>> SimStore::ListVersions(absl::string_view) {
  std::vector<VersionRecord> records;
  for (const auto& [number, record] : disk_.versions) records.push_back(record);
  return records;
}

absl::Status SimStore::StartRound(absl::string_view, const RoundRecord& round) {
  const auto known = disk_.rounds.find(round.round);
  if (known != disk_.rounds.end() && known->second.record.cohort != round.cohort) {
    return absl::FailedPreconditionError("another round of this number");
  }
  return Write([&] { disk_.rounds.try_emplace(round.round, SimDisk::Round{round}); });
}

absl::Status SimStore::AddMembers(absl::string_view, uint64_t round,
                                  absl::Span<const std::string> nodes) {
  return Write([&] {
    std::vector<std::string>& cohort = disk_.rounds.at(round).record.cohort;
    for (const std::string& node : nodes) {
      const auto place = std::lower_bound(cohort.begin(), cohort.end(), node);
      if (place == cohort.end() || *place != node) cohort.insert(place, node);
    }
  });
}

absl::StatusOr<std::vector<RoundRecord>> SimStore::ListRounds(absl::string_view,
                                                              uint64_t first_version) {
  std::vector<RoundRecord> rounds;
  for (const auto& [number, round] : disk_.rounds) {
    if (round.record.base_version >= first_version) rounds.push_back(round.record);
  }
  return rounds;
}

absl::StatusOr<std::optional<RoundRecord>> SimStore::ContinueRound(absl::string_view) {
  if (disk_.rounds.empty()) return std::optional<RoundRecord>();
  SimDisk::Round& last = disk_.rounds.rbegin()->second;
  const bool is_open =
      last.state == SimDisk::RoundState::kOpen || last.state == SimDisk::RoundState::kEvaluating;
  if (!is_open) return std::optional<RoundRecord>();
  RETURN_IF_ERROR(Write([&] { ++last.record.attempt; }));
  last.record.closed = last.state == SimDisk::RoundState::kEvaluating;
  return std::optional<RoundRecord>(last.record);
}

absl::Status SimStore::AbandonRound(absl::string_view, const RoundAbandoned& round, absl::Time) {
  return Write([&] {
    SimDisk::Round& stored = disk_.rounds.at(round.round);
    stored.state = SimDisk::RoundState::kAbandoned;
    stored.reason = round.reason;
    for (auto& [key, record] : disk_.updates) {
      if (round.carried && record.counted == round.round) ++record.counted;
    }
  });
}

absl::Status SimStore::StartEvaluation(absl::string_view, uint64_t round) {
  return Write([&] { disk_.rounds.at(round).state = SimDisk::RoundState::kEvaluating; });
}

absl::Status SimStore::RefuseRound(absl::string_view run, const RefusedRound& round) {
  SimDisk::Round& stored = disk_.rounds.at(round.round);
  if (stored.state == SimDisk::RoundState::kRefused) return absl::OkStatus();
  return Write([&] {
    stored.state = SimDisk::RoundState::kRefused;
    stored.reason = round.reason;
    Append(RefusalEntry(run, round));
  });
}

absl::StatusOr<VersionRecord> SimStore::PublishVersion(
    absl::string_view run, VersionRecord record, const VersionBlobs& blobs,
    absl::Span<const Contribution> contributions) {
  for (const auto& [bytes, digest] :
       {std::pair(blobs.encoded, &record.encoded), std::pair(blobs.master, &record.master)}) {
    *digest = Sha256Of(bytes);
    RETURN_IF_ERROR(Write([&] { disk_.blobs[*digest] = std::string(bytes); }));
  }
  record.encoded_bytes = blobs.encoded.size();
  const auto known = disk_.versions.find(record.version);
  if (known != disk_.versions.end() && known->second.master != record.master) {
    return absl::FailedPreconditionError("another version of this number");
  }
  if (known != disk_.versions.end()) return record;
  RETURN_IF_ERROR(Write([&] {
    disk_.versions[record.version] = record;
    disk_.contributions[record.version] = {contributions.begin(), contributions.end()};
    const auto round = disk_.rounds.find(record.round);
    if (round != disk_.rounds.end()) round->second.state = SimDisk::RoundState::kPublished;
    if (record.origin) {
      for (const auto& [key, update] : disk_.updates) {
        if (update.outcome == Outcome::kAccepted) disk_.given_up.insert(key);
      }
    }
    Append(PublicationEntry(run, record));
  }));
  return record;
}

absl::StatusOr<std::string> SimStore::ReadBlob(const Digest& digest) {
  const auto blob = disk_.blobs.find(digest);
  if (blob == disk_.blobs.end()) return absl::NotFoundError("no such blob");
  if (Sha256Of(blob->second) != digest) return absl::DataLossError("damaged blob");
  return blob->second;
}

absl::StatusOr<bool> SimStore::IsServed(absl::string_view, const Digest& digest) {
  for (const auto& [number, record] : disk_.versions) {
    if (record.encoded == digest) return true;
  }
  return false;
}

absl::Status SimStore::RecordParticipations(absl::string_view run,
                                            absl::Span<const ParticipationRecord> records) {
  return Write([&] {
    for (const ParticipationRecord& record : records) {
      if (record.quarantined) Append(QuarantineEntry(run, record));
      const auto [known, added] = disk_.updates.try_emplace({record.round, record.node_id}, record);
      const bool judged = known->second.outcome == Outcome::kAccepted ||
                          known->second.outcome == Outcome::kRejected;
      if (!judged) known->second = record;
    }
  });
}

absl::StatusOr<std::optional<ParticipationRecord>> SimStore::FindParticipation(
    absl::string_view, uint64_t round, absl::string_view node) {
  const auto found = disk_.updates.find({round, std::string(node)});
  if (found == disk_.updates.end()) return std::optional<ParticipationRecord>();
  return std::optional<ParticipationRecord>(found->second);
}

absl::StatusOr<std::vector<ParticipationRecord>> SimStore::ListParticipations(absl::string_view,
                                                                              uint64_t round) {
  std::vector<ParticipationRecord> records;
  for (const auto& [key, record] : disk_.updates) {
    if (key.first == round) records.push_back(record);
  }
  return records;
}

absl::StatusOr<std::vector<ParticipationRecord>> SimStore::ListFolded(absl::string_view,
                                                                      uint64_t round) {
  std::vector<ParticipationRecord> records;
  for (const auto& [key, record] : disk_.updates) {
    const bool is_kept = disk_.given_up.count(key) == 0;
    if (is_kept && record.counted == round && record.round != round) records.push_back(record);
  }
  return records;
}

}  // namespace fedge::robustness
