#include "tools/simulate/node_data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/coordinator.h"

namespace fedge {
namespace {

std::vector<Record> Records(const std::vector<std::pair<std::string, int>>& nodes) {
  std::vector<Record> records;
  for (const auto& [node, count] : nodes) {
    for (int i = 0; i < count; ++i) {
      Record record;
      record.node = node;
      record.id = absl::StrCat(i);
      RecordSpan span;
      span.text = "text";
      span.trained = true;
      record.spans.push_back(span);
      records.push_back(std::move(record));
    }
  }
  return records;
}

std::vector<std::string> Names(const NodeData& data) {
  std::vector<std::string> names;
  for (const NodeRecords& node : data.nodes) names.push_back(node.node);
  return names;
}

TEST(NodeDataTest, LeavesOutNodesWithTooFewRecords) {
  NodeDataOptions options;
  options.min_records = 3;
  const auto data = MakeNodeData(Records({{"b", 3}, {"a", 5}, {"c", 2}}), options);
  ASSERT_TRUE(data.ok());
  EXPECT_EQ(Names(*data), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(data->records_left_out, 2);
  EXPECT_EQ(data->text_bytes, 8 * 4u);
}

TEST(NodeDataTest, KeepsTheLargestNodes) {
  NodeDataOptions options;
  options.nodes = 2;
  const auto data = MakeNodeData(Records({{"a", 3}, {"b", 9}, {"c", 5}, {"d", 5}}), options);
  ASSERT_TRUE(data.ok());
  EXPECT_EQ(Names(*data), (std::vector<std::string>{"b", "c"}));
}

TEST(NodeDataTest, SamplesNodesBySeed) {
  std::vector<std::pair<std::string, int>> nodes;
  for (int i = 0; i < 30; ++i) nodes.push_back({absl::StrCat("n", i), 2 + i});
  NodeDataOptions options;
  options.nodes = 5;
  options.sample = true;
  options.seed = 1;
  const auto one = MakeNodeData(Records(nodes), options);
  const auto again = MakeNodeData(Records(nodes), options);
  options.seed = 2;
  const auto other = MakeNodeData(Records(nodes), options);
  EXPECT_EQ(Names(*one).size(), 5u);
  EXPECT_EQ(Names(*one), Names(*again));
  EXPECT_NE(Names(*one), Names(*other));
}

TEST(NodeDataTest, CutsDataWithoutNodesIntoParts) {
  NodeDataOptions options;
  options.nodes = 4;
  const auto data = MakeNodeData(Records({{"", 20}}), options);
  ASSERT_TRUE(data.ok());
  EXPECT_EQ(data->nodes.size(), 4u);
  options.nodes = 0;
  EXPECT_EQ(MakeNodeData(Records({{"", 64}}), options)->nodes.size(),
            static_cast<size_t>(kDefaultParts));
}

TEST(NodeDataTest, EveryNodeIdIsOneTheServerTakes) {
  const auto data = MakeNodeData(
      Records({{"", 3}, {std::string(300, 'x'), 3}, {"tab\there", 3}, {"fine", 3}}), {});
  ASSERT_TRUE(data.ok());
  EXPECT_EQ(data->nodes.size(), 4u);
  for (const NodeRecords& node : data->nodes) {
    EXPECT_TRUE(CheckNodeId(node.node).ok()) << node.node;
  }
}

TEST(NodeDataTest, TooLittleDataIsAnErrorWithNumbers) {
  NodeDataOptions options;
  options.path = "x.jsonl";
  options.min_records = 5;
  const auto data = MakeNodeData(Records({{"a", 4}}), options);
  EXPECT_EQ(data.status().message(),
            "x.jsonl: no node has the 5 records that a node needs (4 records, the largest node has "
            "4); give more data or --min-records");
  EXPECT_FALSE(MakeNodeData({}, options).ok());
}

}  // namespace
}  // namespace fedge
