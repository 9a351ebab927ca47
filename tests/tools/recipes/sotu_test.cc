#include "tools/recipes/sotu.h"

#include "gtest/gtest.h"

namespace fedge {
namespace {

TEST(SotuTest, MakesANodeOfEachAddressAndPiecesOfItsText) {
  const std::vector<SotuAddress> addresses = {
      {"1801.json",
       R"({"year":1801,"name":"Jefferson","party":"x","text":"Third one. Fourth one."})"},
      {"1790.json", R"({"year":1790,"name":"Washington","text":" First one.\nSecond one. "})"}};
  EXPECT_EQ(BuildSotu(addresses, 12).value(),
            R"({"node":"1790 Washington","id":"1790 Washington/001","text":"First one."})"
            "\n"
            R"({"node":"1790 Washington","id":"1790 Washington/002","text":"Second one."})"
            "\n"
            R"({"node":"1801 Jefferson","id":"1801 Jefferson/001","text":"Third one."})"
            "\n"
            R"({"node":"1801 Jefferson","id":"1801 Jefferson/002","text":"Fourth one."})"
            "\n");
}

TEST(SotuTest, NamesTheFileThatIsNoAddress) {
  for (const char* json :
       {"{", "[]", R"({"year":"1790","name":"W","text":"t"})", R"({"year":1790,"name":"W"})"}) {
    const auto records = BuildSotu({{"1790.json", json}}, 100);
    EXPECT_EQ(records.status().code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_EQ(records.status().message(),
              "1790.json: not a JSON object with \"year\", \"name\" and \"text\"");
  }
}

}  // namespace
}  // namespace fedge
