#include "common/training/partition.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::vector<Record> Records(const std::vector<std::string>& nodes) {
  std::vector<Record> records;
  for (const std::string& node : nodes) {
    Record& record = records.emplace_back();
    record.node = node;
    record.id = absl::StrCat(records.size() - 1);
  }
  return records;
}

// "node: id id ..."
std::vector<std::string> Summary(const std::vector<NodeRecords>& nodes) {
  std::vector<std::string> lines;
  for (const NodeRecords& node : nodes) {
    std::string& line = lines.emplace_back(node.node + ":");
    for (const Record& record : node.records) {
      EXPECT_EQ(record.node, node.node);
      absl::StrAppend(&line, " ", record.id);
    }
  }
  return lines;
}

TEST(PartitionTest, ByNodeSortsNodesAndKeepsTheOrderOfRecords) {
  EXPECT_THAT(Summary(PartitionByNode(Records({"b", "a", "", "b", "a.txt", "a"}))),
              ElementsAre(": 2", "a: 1 5", "a.txt: 4", "b: 0 3"));
  EXPECT_THAT(PartitionByNode({}), IsEmpty());
}

TEST(PartitionTest, KnowsWhetherNodesAreNamed) {
  EXPECT_TRUE(NamesNodes(Records({"", "x"})));
  EXPECT_FALSE(NamesNodes(Records({"", ""})));
  EXPECT_FALSE(NamesNodes({}));
}

TEST(PartitionTest, EvenlyMakesContiguousChunks) {
  const auto nodes = PartitionEvenly(Records(std::vector<std::string>(11, "")), 4, 3);
  ASSERT_THAT(nodes, SizeIs(4));
  size_t next = 0;
  for (size_t i = 0; i < nodes.size(); ++i) {
    EXPECT_EQ(nodes[i].node, absl::StrCat("part-00", i));
    EXPECT_GE(nodes[i].records.size(), 2u);
    EXPECT_LE(nodes[i].records.size(), 3u);
    for (const Record& record : nodes[i].records) {
      EXPECT_EQ(record.node, nodes[i].node);
      EXPECT_EQ(record.id, absl::StrCat(next++));
    }
  }
  EXPECT_EQ(next, 11u);
}

TEST(PartitionTest, EvenlyIsAFunctionOfTheSeed) {
  const auto sizes = [](uint64_t seed) {
    std::vector<size_t> result;
    for (const auto& node : PartitionEvenly(Records(std::vector<std::string>(50, "")), 20, seed)) {
      result.push_back(node.records.size());
    }
    return result;
  };
  EXPECT_EQ(sizes(1), sizes(1));
  EXPECT_NE(sizes(1), sizes(2));
}

TEST(PartitionTest, EvenlyMakesNoEmptyNodes) {
  EXPECT_THAT(PartitionEvenly(Records({"x", "x"}), 5, 0), SizeIs(2));
  EXPECT_THAT(PartitionEvenly({}, 5, 0), IsEmpty());
}

TEST(PartitionTest, NamesSortByNumber) {
  const auto nodes = PartitionEvenly(Records(std::vector<std::string>(1001, "")), 1001, 0);
  EXPECT_EQ(nodes.front().node, "part-0000");
  EXPECT_EQ(nodes.back().node, "part-1000");
}

}  // namespace
}  // namespace fedge
