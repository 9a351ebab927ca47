// How long nodes take for a task, from the assignment to the update: what deadlines and leases are
// made of.
//
// Measured by the server; until then what the node's own tokens a second would take. An old
// measurement fades (each new one counts 3/10), as devices are busy at times. Nothing is stored: a
// restarted server measures anew.
#ifndef FEDGE_SERVER_NODE_SPEEDS_H_
#define FEDGE_SERVER_NODE_SPEEDS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace fedge {

// Not thread-safe. The result depends on the events and their order only. Remembers a million
// nodes.
class NodeSpeeds {
 public:
  explicit NodeSpeeds(int64_t tokens_per_task) : tokens_per_task_(tokens_per_task) {}

  // The node's own word; without effect once it was measured, or when it is not above 0.
  void NoteRate(absl::string_view node, double tokens_per_second);
  void NoteTask(absl::string_view node, absl::Duration took);

  std::optional<absl::Duration> Expected(absl::string_view node) const;
  // Nine of ten of `nodes` should be done by then, judged by those whose speed is known; nothing if
  // these are fewer than half. One node in ten can neither stretch nor shrink it.
  std::optional<absl::Duration> MostOf(const std::vector<std::string>& nodes) const;

 private:
  struct Task {
    absl::Duration time;
    bool is_measured = false;
  };
  Task* FindOrAdd(absl::string_view node);

  const int64_t tokens_per_task_;
  std::map<std::string, Task, std::less<>> tasks_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_NODE_SPEEDS_H_
