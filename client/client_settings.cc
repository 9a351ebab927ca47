#include "client/client_settings.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "client/commands.h"
#include "common/base/env.h"
#include "common/base/status.h"
#include "common/security/signing.h"
#include "common/training/memory_plan.h"

namespace fedge {
namespace {

constexpr double kMemoryShare = 0.8;  // of what the process may use; the rest is others'
constexpr uint32_t kMaxThreads = 1024;
constexpr double kMaxCheckpointSeconds = 24 * 3600;

absl::Status Required(absl::string_view field, absl::string_view flag) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is missing: give ", flag, ", or `", field,
                                                 ":` in the file of --config"));
}

std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// The smallest limit of the control group `group` and those above it. "max" is no number.
int64_t SmallestLimit(const std::string& base, std::string group, const char* file,
                      int64_t smallest) {
  for (;;) {
    int64_t bytes = 0;
    const std::string text = ReadText(absl::StrCat(base, group, "/", file));
    if (absl::SimpleAtoi(absl::StripTrailingAsciiWhitespace(text), &bytes) && bytes > 0) {
      smallest = smallest == 0 ? bytes : std::min(smallest, bytes);
    }
    if (group.empty() || group == "/") return smallest;
    group = group.substr(0, group.rfind('/'));
  }
}

}  // namespace

int64_t UsableMemoryBytes(const std::string& root) {
  const int64_t pages = sysconf(_SC_PHYS_PAGES);
  const int64_t page_bytes = sysconf(_SC_PAGE_SIZE);
  int64_t bytes = pages > 0 && page_bytes > 0 ? pages * page_bytes : 0;
  const std::string groups = ReadText(root + "/proc/self/cgroup");
  for (const absl::string_view line : absl::StrSplit(groups, '\n')) {
    // "0::/system.slice/x" (version 2), "7:memory:/x" (version 1).
    const std::vector<absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    if (parts[1].empty()) {
      bytes = SmallestLimit(root + "/sys/fs/cgroup", std::string(parts[2]), "memory.max", bytes);
    } else if (parts[1] == "memory") {
      bytes = SmallestLimit(root + "/sys/fs/cgroup/memory", std::string(parts[2]),
                            "memory.limit_in_bytes", bytes);
    }
  }
  return bytes;
}

absl::StatusOr<ClientSettings> ResolveSettings(const v1::ClientConfig& config) {
  ClientSettings settings;
  if (config.data().empty()) return Required("data", "--data PATH");
  settings.server = config.server();
  settings.data = config.data();
  settings.model = config.model();
  settings.model_url = config.model_url();
  settings.insecure = config.insecure();
  absl::StatusOr<std::string> key = ParsePublicKey(config.server_key());
  if (!key.ok()) return Annotate(key.status(), "server_key");
  settings.server_key = *std::move(key);
  settings.node_id = config.node_id();
  if (settings.insecure && settings.node_id.empty()) settings.node_id = HostName();
  settings.state_dir = config.state_dir().empty() ? kDefaultStateDir : config.state_dir();
  settings.adapters_dir = config.adapters_dir().empty() ? JoinPath(settings.state_dir, "adapters")
                                                        : config.adapters_dir();
  settings.on_new_adapter = config.on_new_adapter();
  settings.stay = config.stay();
  if (config.threads() > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads: ", config.threads(), ", at most ", kMaxThreads));
  }
  settings.threads = static_cast<int>(config.threads());
  if (config.has_memory_limit()) {
    const absl::StatusOr<int64_t> bytes = ParseByteSize(config.memory_limit());
    if (!bytes.ok()) return Annotate(bytes.status(), "memory_limit");
    settings.memory_limit_bytes = *bytes;
  } else {
    settings.memory_limit_bytes =
        static_cast<int64_t>(kMemoryShare * static_cast<double>(UsableMemoryBytes("")));
  }
  const double seconds = config.has_checkpoint_seconds() ? config.checkpoint_seconds() : 60;
  if (!(seconds >= 0 && seconds <= kMaxCheckpointSeconds)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "checkpoint_seconds: ", seconds, " is not within [0, ", kMaxCheckpointSeconds, "]"));
  }
  settings.checkpoint_interval = absl::Seconds(seconds);
  ASSIGN_OR_RETURN(settings.policy, ParsePolicy(config.policy()));
  return settings;
}

}  // namespace fedge
