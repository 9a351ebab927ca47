#include "tools/simulate/node_data.h"

#include <algorithm>
#include <utility>

#include "common/base/digest.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "server/coordinator.h"

namespace fedge {
namespace {

// Node names of data are free text; the protocol wants short printable ids. The records keep their
// own name (the train/validation split goes by it).
std::string NodeId(const std::string& name) {
  if (name.empty()) return "(no node named)";
  if (CheckNodeId(name).ok()) return name;
  return absl::StrCat("node-", Sha256Of(name).Hex().substr(0, 16));
}

// Of equally large nodes the first by name stays.
void KeepLargest(size_t count, std::vector<NodeRecords>& nodes) {
  std::stable_sort(nodes.begin(), nodes.end(), [](const NodeRecords& a, const NodeRecords& b) {
    return a.records.size() > b.records.size();
  });
  nodes.resize(count);
}

}  // namespace

absl::StatusOr<NodeData> MakeNodeData(std::vector<Record> records, const NodeDataOptions& options) {
  NodeData data;
  std::vector<NodeRecords> nodes;
  const auto all = static_cast<int64_t>(records.size());
  if (all > 0 && NamesNodes(records)) {
    nodes = PartitionByNode(std::move(records));
  } else if (all > 0) {
    const int64_t parts = options.nodes > 0 ? options.nodes : kDefaultParts;
    nodes = PartitionEvenly(std::move(records), parts, options.seed);
  }
  size_t largest = 0;
  for (const NodeRecords& node : nodes) largest = std::max(largest, node.records.size());
  const auto too_small = [&](const NodeRecords& node) {
    return static_cast<int64_t>(node.records.size()) < options.min_records;
  };
  nodes.erase(std::remove_if(nodes.begin(), nodes.end(), too_small), nodes.end());
  if (nodes.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.path, ": no node has the ", options.min_records, " records that a node needs (",
        all, " records, the largest node has ", largest, "); give more data or --min-records"));
  }
  const auto wanted = static_cast<size_t>(options.nodes);
  if (wanted > 0 && nodes.size() > wanted) {
    if (options.sample) {
      Rng rng = Rng::Stream(options.seed, "simulated-nodes");
      rng.Shuffle(absl::MakeSpan(nodes));
      nodes.resize(wanted);
    } else {
      KeepLargest(wanted, nodes);
    }
  }
  int64_t kept = 0;
  for (NodeRecords& node : nodes) {
    node.node = NodeId(node.node);
    kept += static_cast<int64_t>(node.records.size());
    for (const Record& record : node.records) {
      for (const RecordSpan& span : record.spans) data.text_bytes += span.text.size();
    }
  }
  data.records_left_out = all - kept;
  std::sort(nodes.begin(), nodes.end(),
            [](const NodeRecords& a, const NodeRecords& b) { return a.node < b.node; });
  data.nodes = std::move(nodes);
  return data;
}

absl::StatusOr<NodeData> LoadNodeData(const NodeDataOptions& options, ChatFormat format, Env& env) {
  ASSIGN_OR_RETURN(std::vector<Record> records,
                   ReadRecords(options.path, format, DatasetLimits(), env));
  return MakeNodeData(std::move(records), options);
}

}  // namespace fedge
