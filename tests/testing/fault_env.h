// An Env whose Nth operation fails, once or from then on: to run code against every place where a
// disk can fail it.
//
//   for (int64_t n = 1;; ++n) {
//     FaultEnv env;
//     env.FailFrom(n, absl::StatusCode::kResourceExhausted, FaultEnv::Span::kOnce);
//     const absl::Status status = SaveEverything(&env);
//     if (!env.triggered()) break;  // n is beyond the last operation
//     ... check status and what is on disk ...
//   }
//
// An operation that fails has no effect, with the exceptions disks have: a failing Append leaves
// the first half of its data in the file, a failing Close closes.
#ifndef FEDGE_TESTS_TESTING_FAULT_ENV_H_
#define FEDGE_TESTS_TESTING_FAULT_ENV_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/base/env.h"

namespace fedge::testing {

// Thread-safe. Files it opened must not outlive it.
class FaultEnv : public Env {
 public:
  enum class Span { kOnce, kForEver };
  // Which operations are counted and may fail.
  enum class Scope { kAll, kWrites };  // kWrites: all but Map, FileSize and ListDir

  explicit FaultEnv(Env* base = Env::Posix()) : base_(base) {}

  // The `nth` operation from now on (1: the next one) fails with `code`. Replaces an earlier plan.
  void FailFrom(int64_t nth, absl::StatusCode code, Span span, Scope scope = Scope::kAll);
  void Heal();  // nothing fails any more

  bool triggered() const;      // whether the plan made an operation fail
  int64_t operations() const;  // counted since the construction or the last FailFrom
  // All operations so far, whatever the scope, e.g. "Append state.db" (base names only).
  std::vector<std::string> log() const;

  absl::StatusOr<std::unique_ptr<MappedFile>> Map(absl::string_view path) override;
  absl::StatusOr<std::unique_ptr<WritableFile>> OpenForWrite(absl::string_view path,
                                                             uint64_t keep_bytes = 0) override;
  absl::Status Rename(absl::string_view from, absl::string_view to) override;
  absl::Status SyncDir(absl::string_view dir) override;
  absl::Status CreateDirs(absl::string_view dir) override;
  absl::Status Remove(absl::string_view path) override;
  absl::StatusOr<uint64_t> FileSize(absl::string_view path) override;
  absl::StatusOr<std::vector<std::string>> ListDir(absl::string_view dir) override;

 private:
  class File;

  // Counts and logs an operation; its error when the plan says so.
  absl::Status Step(absl::string_view operation, absl::string_view path, bool writes);

  Env* const base_;
  mutable absl::Mutex mutex_;
  int64_t fail_from_ ABSL_GUARDED_BY(mutex_) = 0;  // 0: no plan
  absl::StatusCode code_ ABSL_GUARDED_BY(mutex_) = absl::StatusCode::kInternal;
  Span span_ ABSL_GUARDED_BY(mutex_) = Span::kOnce;
  Scope scope_ ABSL_GUARDED_BY(mutex_) = Scope::kAll;
  bool triggered_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t operations_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::string> log_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_FAULT_ENV_H_
