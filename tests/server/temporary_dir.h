// A folder that goes away with the test.
#ifndef FEDGE_TESTS_SERVER_TEMPORARY_DIR_H_
#define FEDGE_TESTS_SERVER_TEMPORARY_DIR_H_

#include <stdlib.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/env.h"
#include "common/base/status.h"

namespace fedge::testing {

class TemporaryDir {
 public:
  TemporaryDir() {
    const char* const chosen = std::getenv("TMPDIR");
    // In memory where that is possible: syncs are for nothing here and take most of the time.
    const char* const root = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    path_ = absl::StrCat(chosen != nullptr ? chosen : root, "/fedge-test-XXXXXX");
    FEDGE_CHECK(mkdtemp(path_.data()) != nullptr, path_);
  }
  ~TemporaryDir() { Env::Posix()->Remove(path_).IgnoreError(); }
  TemporaryDir(const TemporaryDir&) = delete;
  TemporaryDir& operator=(const TemporaryDir&) = delete;

  const std::string& path() const { return path_; }
  std::string File(absl::string_view name) const { return JoinPath(path_, name); }

 private:
  std::string path_;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_SERVER_TEMPORARY_DIR_H_
