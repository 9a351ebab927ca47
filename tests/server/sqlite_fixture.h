// A store in a folder of its own, and records to put into it.
#ifndef FEDGE_TESTS_SERVER_SQLITE_FIXTURE_H_
#define FEDGE_TESTS_SERVER_SQLITE_FIXTURE_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "server/sqlite_store.h"
#include "tests/server/temporary_dir.h"

namespace fedge::testing {

inline constexpr absl::string_view kRun = "default";

inline absl::Time At(int64_t seconds) { return absl::FromUnixSeconds(1767225600 + seconds); }

inline RunRecord TheRun() {
  return RunRecord{.run_id = std::string(kRun),
                   .base_model = Sha256Of("base"),
                   .layout = Sha256Of("layout"),
                   .seed = 7,
                   .config = "",
                   .created = At(0),
                   .by_operator = false,
                   .parent_run = "",
                   .parent_version = std::nullopt};
}

inline absl::StatusOr<std::unique_ptr<SqliteStore>> Open(const TemporaryDir& dir,
                                                         Env& env = *Env::Posix()) {
  return SqliteStore::Open({.dir = dir.path(), .in_memory = false, .keep_versions = 2}, env);
}

inline std::unique_ptr<SqliteStore> OpenOrDie(const TemporaryDir& dir,
                                              const RunRecord& run = TheRun()) {
  auto store = Open(dir);
  FEDGE_CHECK(store.ok(), store.status().message());
  const absl::Status status = (*store)->OpenRun(run);
  FEDGE_CHECK(status.ok(), status.message());
  return *std::move(store);
}

inline VersionRecord Version(uint64_t version) {
  VersionRecord record;
  record.version = version;
  record.round = version;
  record.counts = {.assigned = 4, .accepted = 2, .rejected = 1, .dropped = 1, .late = 3};
  record.update_bytes = 1000 + version;
  record.typical_norm = {0.5, 0.125};
  record.aggregation_error = 0.025;
  record.metrics = {.devices = 2,
                    .train_loss_first = 3.5,
                    .train_loss_last = 3.25,
                    .validation_loss = 3.125,
                    .validation_tokens = 77,
                    .train_tokens = 4096,
                    .upload_bytes = 900,
                    .download_bytes = 800};
  record.created = At(static_cast<int64_t>(version));
  return record;
}

inline RoundRecord Round(uint64_t round, uint64_t base_version) {
  return {.round = round,
          .base_version = base_version,
          .cohort = {"node-01", "node-02"},
          .started = At(9)};
}

inline absl::StatusOr<VersionRecord> Publish(SqliteStore& store, uint64_t version) {
  if (version > 0) {
    RETURN_IF_ERROR(store.StartRound(kRun, Round(version, version - 1)));
  }
  return store.PublishVersion(kRun, Version(version),
                              {.encoded = absl::StrCat("encoded ", version),
                               .master = absl::StrCat("master ", version),
                               .momentum = version == 2 ? "momentum" : "",
                               .snapshot = version == 1 ? "snapshot" : ""},
                              {});
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_SERVER_SQLITE_FIXTURE_H_
