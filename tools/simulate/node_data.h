// The data of a simulation as virtual nodes: read, partitioned, filtered, capped.
#ifndef FEDGE_TOOLS_SIMULATE_NODE_DATA_H_
#define FEDGE_TOOLS_SIMULATE_NODE_DATA_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/env.h"
#include "common/model/chat_template.h"
#include "common/training/partition.h"

namespace fedge {

struct NodeDataOptions {
  std::string path;         // JSONL, text or folder
  int64_t nodes = 0;        // keep at most so many; 0: all
  bool sample = false;      // which ones: the largest, or a seeded sample of all
  int64_t min_records = 2;  // a node with fewer is left out
  uint64_t seed = 0;
};

// Number of equal parts that data without node names is cut into unless told otherwise.
inline constexpr int64_t kDefaultParts = 16;

struct NodeData {
  std::vector<NodeRecords> nodes;  // sorted by node id; ids are valid for the server and unique
  int64_t records_left_out = 0;
  uint64_t text_bytes = 0;
};

// InvalidArgument: no node has enough records, or as ReadRecords.
absl::StatusOr<NodeData> LoadNodeData(const NodeDataOptions& options, ChatFormat format, Env& env);

// The same from records in memory. Natural nodes stay whole; data without node names becomes
// `options.nodes` (or kDefaultParts) parts of neighbouring records.
absl::StatusOr<NodeData> MakeNodeData(std::vector<Record> records, const NodeDataOptions& options);

}  // namespace fedge

#endif  // FEDGE_TOOLS_SIMULATE_NODE_DATA_H_
