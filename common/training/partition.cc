#include "common/training/partition.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {

bool NamesNodes(absl::Span<const Record> records) {
  return std::any_of(records.begin(), records.end(),
                     [](const Record& record) { return !record.node.empty(); });
}

std::vector<NodeRecords> PartitionByNode(std::vector<Record> records) {
  std::map<std::string, std::vector<Record>> nodes;
  for (Record& record : records) {
    std::vector<Record>& node = nodes[record.node];
    node.push_back(std::move(record));
  }
  std::vector<NodeRecords> result;
  result.reserve(nodes.size());
  for (auto& [name, of_node] : nodes) result.push_back({name, std::move(of_node)});
  return result;
}

std::vector<NodeRecords> PartitionEvenly(std::vector<Record> records, int64_t n, uint64_t seed) {
  FEDGE_CHECK(n >= 1, "n ", n);
  const size_t parts = std::min(static_cast<size_t>(n), records.size());
  std::vector<NodeRecords> result(parts);
  if (parts == 0) return result;
  std::vector<size_t> sizes(parts, records.size() / parts);
  for (size_t i = 0; i < records.size() % parts; ++i) ++sizes[i];
  Rng rng = Rng::Stream(seed, "partition");
  rng.Shuffle(absl::MakeSpan(sizes));
  const size_t width = std::max<size_t>(3, absl::StrCat(parts - 1).size());
  size_t next = 0;
  for (size_t part = 0; part < parts; ++part) {
    const std::string number = absl::StrCat(part);
    NodeRecords& node = result[part];
    node.node = absl::StrCat("part-", std::string(width - number.size(), '0'), number);
    node.records.reserve(sizes[part]);
    for (size_t i = 0; i < sizes[part]; ++i) {
      records[next].node = node.node;
      node.records.push_back(std::move(records[next++]));
    }
  }
  return result;
}

}  // namespace fedge
