// Records to the nodes they belong to: the natural clients of a data set, or equal parts of it.
#ifndef FEDGE_COMMON_TRAINING_PARTITION_H_
#define FEDGE_COMMON_TRAINING_PARTITION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "common/training/dataset.h"

namespace fedge {

struct NodeRecords {
  std::string node;
  std::vector<Record> records;
};

// Whether any record names a node: then PartitionByNode has something to go by.
bool NamesNodes(absl::Span<const Record> records);

// One entry a node, sorted by name, records in their order. Records that name no node, where others
// do, are the node "" (first).
std::vector<NodeRecords> PartitionByNode(std::vector<Record> records);

// min(n, records) nodes "part-000", "part-001", ... of contiguous chunks in the records' order, for
// data without nodes: neighbours stay together, so the parts differ as the text does. Sizes differ
// by at most one; `seed` draws which parts are the larger ones. Every record's node becomes its
// part. n >= 1 (CHECK).
std::vector<NodeRecords> PartitionEvenly(std::vector<Record> records, int64_t n, uint64_t seed);

}  // namespace fedge

#endif  // FEDGE_COMMON_TRAINING_PARTITION_H_
