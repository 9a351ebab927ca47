#include "tests/robustness/run_checks.h"

#include <algorithm>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/base/env.h"
#include "common/base/status.h"
#include "server/blob_folder.h"
#include "server/sqlite_db.h"
#include "tests/robustness/toy_fleet.h"

namespace fedge::robustness {
namespace {

absl::Status ReadUpdates(SqliteDb& db, uint64_t number, PublishedVersion& version) {
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db.Prepare("SELECT node_id, digest, weight FROM contributions "
                              "WHERE run_id='default' AND version=? ORDER BY node_id"));
  query.Bind(number);
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return absl::OkStatus();
    ASSIGN_OR_RETURN(const Digest digest, query.DigestAt(1));
    version.updates.push_back(absl::StrCat(query.Bytes(0), " ", digest.Hex(), " ", query.Int(2)));
  }
}

absl::Status ReadVersions(const std::string& state_dir, CaseResult& result) {
  BlobFolder blobs(state_dir, /*durable=*/false, *Env::Posix());
  ASSIGN_OR_RETURN(const std::unique_ptr<SqliteDb> db,
                   SqliteDb::Open(JoinPath(state_dir, "fedge.db")));
  RETURN_IF_ERROR(db->QuickCheck());
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db->Prepare("SELECT version, round, encoded, master, parent FROM versions "
                               "WHERE run_id='default'"));
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return absl::OkStatus();
    PublishedVersion& version = result.versions[query.Unsigned(0)];
    version.round = query.Unsigned(1);
    for (int column : {2, 3}) {
      ASSIGN_OR_RETURN(const Digest digest, query.DigestAt(column));
      RETURN_IF_ERROR(blobs.Read(digest).status());
      (column == 2 ? version.encoded : version.master) = digest.Hex();
    }
    if (!query.IsNull(4)) version.parent = query.Bytes(4);
    RETURN_IF_ERROR(ReadUpdates(*db, query.Unsigned(0), version));
  }
}

bool Contains(const std::vector<std::string>& updates, const std::string& head) {
  return std::any_of(updates.begin(), updates.end(),
                     [&](const std::string& update) { return update.rfind(head, 0) == 0; });
}

// The version that round published, or null.
const PublishedVersion* OfRound(const CaseResult& result, uint64_t round) {
  for (const auto& [number, version] : result.versions) {
    if (version.round == round && number > 0) return &version;
  }
  return nullptr;
}

std::string CheckJournal(const std::string& path, CaseResult& result) {
  std::istringstream lines(Env::Posix()->ReadFile(path).value_or(std::string()));
  std::string problem;
  for (std::string kind; lines >> kind;) {
    if (kind == "version") {
      uint64_t number = 0;
      std::string crc;
      lines >> number >> crc;
      std::string& known = result.versions[number].crc;
      if (!known.empty() && known != crc) {
        problem = absl::StrCat("devices were given different versions ", number, " (I4)");
      }
      known = crc;
      continue;
    }
    if (kind != "verdict") {  // another check's
      std::getline(lines, kind);
      continue;
    }
    std::string node, digest, verdict;
    uint64_t round = 0;
    lines >> node >> round >> digest >> verdict;
    if (verdict != "ACCEPTED") {
      problem = absl::StrCat("node ", node, " was told ", verdict, " in round ", round);
      continue;
    }
    const PublishedVersion* const version = OfRound(result, round);
    if (version == nullptr || !Contains(version->updates, absl::StrCat(node, " ", digest, " "))) {
      ++result.lost;
      problem = absl::StrCat("the update of node ", node, " for round ", round,
                             " was acknowledged and is in no version (I2)");
    }
  }
  return problem;
}

std::string CheckVersions(const CaseResult* reference, CaseResult& result) {
  if (result.versions.size() != kToyRounds + 1) {
    return absl::StrCat(result.versions.size(), " versions instead of ", kToyRounds + 1, " (I3)");
  }
  uint64_t expected = 0;
  for (const auto& [number, version] : result.versions) {
    if (number != expected || (number > 0 && version.parent != absl::StrCat(number - 1))) {
      return absl::StrCat("version ", number, " follows version ", version.parent, " (I3)");
    }
    ++expected;
    if (reference == nullptr) continue;
    const PublishedVersion& wanted = reference->versions.at(number);
    if (version.updates != wanted.updates) {
      return absl::StrCat("version ", number, " is made of other updates (I3)");
    }
    if (version.master != wanted.master) {
      ++result.doubled;
      return absl::StrCat("version ", number, " has the right updates and other bytes (I1, I5)");
    }
    if (!(version == wanted)) return absl::StrCat("version ", number, " is served differently");
  }
  return "";
}

}  // namespace

void CheckRun(const std::string& state_dir, const std::string& journal, const CaseResult* reference,
              CaseResult& result) {
  const absl::Status status = ReadVersions(state_dir, result);
  if (!status.ok()) {
    result.problem = std::string(status.message());
    return;
  }
  result.problem = CheckJournal(journal, result);
  const std::string problem = CheckVersions(reference, result);
  if (result.problem.empty()) result.problem = problem;
}

}  // namespace fedge::robustness
