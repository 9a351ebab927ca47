// What the store knows across runs, for operators: all runs, all nodes and what they did.
#ifndef FEDGE_SERVER_DIRECTORY_H_
#define FEDGE_SERVER_DIRECTORY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/store.h"

namespace fedge {

struct RunEntry {
  RunRecord record;
  RunState state = RunState::kRunning;
};

// A node and the sums of what the store keeps about its updates, in all runs.
struct NodeEntry {
  NodeRecord record;
  absl::Time first_seen;
  uint64_t accepted = 0;
  uint64_t rejected = 0;
  uint64_t late = 0;
  uint64_t failed = 0;
  uint64_t update_bytes = 0;  // of the accepted ones
};

struct NodeTaskEntry {
  std::string run_id;
  ParticipationRecord record;
};

// Thread-safe. Calls block on the disk.
class Directory {
 public:
  virtual ~Directory() = default;

  // Oldest first.
  virtual absl::StatusOr<std::vector<RunEntry>> ListRuns() = 0;
  // At most `limit` nodes with ids behind `after`, sorted by id.
  virtual absl::StatusOr<std::vector<NodeEntry>> ListNodes(absl::string_view after,
                                                           uint64_t limit) = 0;
  // NotFound: never seen.
  virtual absl::StatusOr<NodeEntry> FindNode(absl::string_view node) = 0;
  // What the node did last, the newest first.
  virtual absl::StatusOr<std::vector<NodeTaskEntry>> ListNodeTasks(absl::string_view node,
                                                                   uint64_t limit) = 0;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_DIRECTORY_H_
