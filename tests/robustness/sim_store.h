// A Store in memory whose disk outlives the process: what a crash leaves is what had been written.
#ifndef FEDGE_TESTS_ROBUSTNESS_SIM_STORE_H_
#define FEDGE_TESTS_ROBUSTNESS_SIM_STORE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/decisions.h"
#include "server/store.h"
#include "tests/robustness/sim_adversary.h"

namespace fedge::robustness {

// What is on the simulated disk. One run.
struct SimDisk {
  enum class RoundState { kOpen, kEvaluating, kPublished, kAbandoned, kRefused };
  struct Round {
    RoundRecord record;
    RoundState state = RoundState::kOpen;
    std::string reason = {};  // of one that was abandoned or refused
  };
  bool has_run = false;
  RunState state = RunState::kRunning;
  std::map<uint64_t, Round> rounds;
  std::map<uint64_t, VersionRecord> versions;
  std::map<uint64_t, std::vector<Contribution>> contributions;  // by version
  std::map<std::pair<uint64_t, std::string>, ParticipationRecord> updates;
  std::set<std::pair<uint64_t, std::string>> given_up;  // their bytes went with a rollback
  std::map<Digest, std::string> blobs;
  std::vector<AuditRecord> audit;
};

class SimStore : public Store {
 public:
  SimStore(SimDisk* disk, Adversary* adversary) : disk_(*disk), adversary_(*adversary) {}

  absl::Status OpenRun(const RunRecord&) override {
    return Write([&] { disk_.has_run = true; });
  }
  absl::StatusOr<RunState> GetRunState(absl::string_view) override { return disk_.state; }
  absl::Status SetRunState(absl::string_view run, RunState state, absl::string_view actor,
                           absl::Time when) override {
    if (disk_.state == state) return absl::OkStatus();
    return Write([&] {
      disk_.state = state;
      Append(RunStateEntry(run, state, actor, when));
    });
  }
  absl::StatusOr<std::optional<VersionRecord>> LatestVersion(absl::string_view) override {
    if (disk_.versions.empty()) return std::optional<VersionRecord>();
    return std::optional<VersionRecord>(disk_.versions.rbegin()->second);
  }
  absl::StatusOr<std::vector<VersionRecord>> ListVersions(absl::string_view) override;
  absl::StatusOr<uint64_t> LastRound(absl::string_view) override {
    return disk_.rounds.empty() ? 0 : disk_.rounds.rbegin()->first;
  }
  absl::Status StartRound(absl::string_view run, const RoundRecord& round) override;
  absl::Status AddMembers(absl::string_view run, uint64_t round,
                          absl::Span<const std::string> nodes) override;
  absl::StatusOr<std::vector<RoundRecord>> ListRounds(absl::string_view run,
                                                      uint64_t first_version) override;
  absl::StatusOr<std::optional<RoundRecord>> ContinueRound(absl::string_view run) override;
  absl::Status AbandonRound(absl::string_view run, const RoundAbandoned& round,
                            absl::Time when) override;
  absl::StatusOr<VersionRecord> PublishVersion(
      absl::string_view run, VersionRecord record, const VersionBlobs& blobs,
      absl::Span<const Contribution> contributions) override;
  absl::StatusOr<std::vector<Contribution>> ListContributions(absl::string_view,
                                                              uint64_t version) override {
    return disk_.contributions[version];
  }
  absl::Status RecordHoldout(absl::string_view, uint64_t, double) override {
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> ReadBlob(const Digest& digest) override;
  absl::Status QuarantineBlob(const Digest& digest) override {
    return Write([&] { disk_.blobs.erase(digest); });
  }
  absl::StatusOr<bool> IsServed(absl::string_view, const Digest& digest) override;
  absl::Status WriteUpdate(const Digest& digest, absl::string_view bytes) override {
    return Write([&] { disk_.blobs[digest] = std::string(bytes); });
  }
  void DropUpdate(const Digest&) override {}  // garbage is no concern here
  absl::Status RecordParticipations(absl::string_view run,
                                    absl::Span<const ParticipationRecord> records) override;
  absl::StatusOr<std::optional<ParticipationRecord>> FindParticipation(
      absl::string_view run, uint64_t round, absl::string_view node) override;
  absl::StatusOr<std::vector<ParticipationRecord>> ListParticipations(absl::string_view run,
                                                                      uint64_t round) override;
  absl::StatusOr<std::vector<ParticipationRecord>> ListFolded(absl::string_view run,
                                                              uint64_t round) override;
  absl::Status WithdrawParticipation(absl::string_view, uint64_t round,
                                     absl::string_view node) override {
    return Write([&] { disk_.updates.erase({round, std::string(node)}); });
  }
  absl::Status RecordMetrics(absl::string_view, uint64_t, absl::string_view,
                             absl::string_view) override {
    return absl::OkStatus();
  }
  absl::Status TouchNodes(absl::Span<const NodeRecord>) override {
    return Write([] {});
  }
  absl::StatusOr<uint64_t> CountNodes() override { return 0; }
  absl::Status StartEvaluation(absl::string_view run, uint64_t round) override;
  absl::Status RefuseRound(absl::string_view run, const RefusedRound& round) override;
  absl::Status AppendAudit(const AuditEntry& entry) override {
    return Write([&] { Append(entry); });
  }
  absl::StatusOr<std::vector<AuditRecord>> ListAudit(uint64_t, uint64_t) override {
    return disk_.audit;
  }
  absl::StatusOr<std::vector<AuditRecord>> ListAuditOf(absl::string_view) override {
    return disk_.audit;
  }

 private:
  absl::Status Write(absl::FunctionRef<void()> operation);
  void Append(const AuditEntry& entry) {
    disk_.audit.push_back(
        NextAuditRecord(disk_.audit.empty() ? AuditRecord() : disk_.audit.back(), entry));
  }

  SimDisk& disk_;
  Adversary& adversary_;
  bool failed_ = false;  // as the real one: after an error but a full disk, nothing more
};

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_SIM_STORE_H_
