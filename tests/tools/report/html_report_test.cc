#include "tools/report/html_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "common/base/rng.h"
#include "tests/tools/report/xml_check.h"
#include "tools/report/text_report.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

RunReport MakeReport(int64_t rounds, int64_t nodes) {
  RunReport report;
  report.title = "fedge simulate: debian-packages <by maintainer> & co";
  report.settings = {{"base model", "fedge-tiny-q8_0.gguf"}, {"seed", "1"}};
  report.before = {5.2, 0.06};
  report.adapter_parameters = 200'000;
  report.label_count = 20;
  report.label_questions = 400;
  report.label_majority = 0.17;
  Rng rng(7);
  for (int64_t i = 1; i <= rounds; ++i) {
    const double t = static_cast<double>(i) / static_cast<double>(rounds);
    RoundRecord round;
    round.round = static_cast<uint64_t>(i);
    round.version = round.round;
    round.assigned = 16;
    round.accepted = 15;
    round.rejected = 1;
    round.train_loss = 5.1 - t;
    round.quality = QualityPoint{5.2 - 1.1 * std::sqrt(t) + 0.02 * rng.Normal(), std::nullopt};
    if (i % 5 == 0) round.quality->label_accuracy = 0.06 + 0.4 * t;
    round.upload_bytes = 16 * 12'000 + rng.Below(5000);
    round.download_bytes = 16 * 400'000;
    report.rounds.push_back(round);
    report.centralized.push_back(
        {static_cast<double>(i), {5.1 - 1.3 * std::sqrt(t), 0.1 + 0.5 * t}});
  }
  report.after = {4.1, 0.46};
  report.sections = UpdateSections{.header = 0.01,
                                   .positions = 0.69,
                                   .scales = 0.01,
                                   .values = 0.29,
                                   .bits_per_parameter = 0.65,
                                   .floor_bits_per_parameter = 0.67,
                                   .a_share = 0.26,
                                   .tensors = {{"ffn_up", 0.6}, {"attn_q", 0.4}}};
  for (int64_t i = 0; i < nodes; ++i) {
    NodeResult node;
    node.node = absl::StrCat("Maintainer ", i, " <m", i, "@example.org>");
    node.train_records = 30 + rng.Below(900);
    node.validation_tokens = 500;
    node.loss_before = 5.2 + 0.3 * rng.Normal();
    node.loss_after = node.loss_before - 0.8 + 0.4 * rng.Normal();
    node.rounds = static_cast<int64_t>(rng.Below(3));
    report.nodes.push_back(node);
  }
  report.train_tokens = 650'000;
  report.total_seconds = 312;
  return report;
}

TEST(HtmlReportTest, IsWellFormedAndSelfContained) {
  const std::string page = HtmlReport(MakeReport(20, 200));
  EXPECT_EQ(testing::XmlProblem(page), "");
  for (const char* outside : {"http://", "https://", "src=", "href=", "url(", "@import"}) {
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
  }
}

TEST(TextReportTest, SaysWhereTheBytesWent) {
  const std::string text = TextReport(MakeReport(2, 2));
  EXPECT_THAT(text, HasSubstr("0.65 (entropy 0.67): header 1.0%, positions 69.0%, scales 1.0%, "
                              "values 29.0%\n"));
  EXPECT_THAT(text, HasSubstr("A 26%, B 74%; ffn_up 60%, attn_q 40%\n"));
}

TEST(HtmlReportTest, HoldsItsNumbersAsJson) {
  const std::string page = HtmlReport(MakeReport(3, 4));
  const std::string mark = "id=\"run-data\">";
  const size_t start = page.find(mark) + mark.size();
  const auto json = nlohmann::json::parse(page.substr(start, page.find("</script>") - start));
  EXPECT_EQ(json["rounds"].size(), 3u);
  EXPECT_EQ(json["nodes"][1]["node"], "Maintainer 1 <m1@example.org>");
  EXPECT_DOUBLE_EQ(json["before"]["perplexity"], std::exp(5.2));
}

TEST(HtmlReportTest, StandsWithoutAnyRound) {
  RunReport report;
  report.title = "nothing happened";
  EXPECT_EQ(testing::XmlProblem(HtmlReport(report)), "");
}

TEST(HtmlReportTest, LeavesOutValuesThatAreNotFinite) {
  RunReport report = MakeReport(4, 3);
  report.rounds[1].quality->validation_loss = std::nan("");
  report.nodes[0].loss_after = INFINITY;
  const std::string page = HtmlReport(report);
  EXPECT_EQ(testing::XmlProblem(page), "");
  const size_t svg = page.find("<svg");
  EXPECT_EQ(page.substr(svg, page.rfind("</svg>") - svg).find("\"nan\""), std::string::npos);
}

TEST(RunReportTest, CountsTrafficByUpdate) {
  RunReport report;
  report.adapter_parameters = 1000;
  RoundRecord round;
  round.accepted = 3;
  round.rejected = 1;
  round.upload_bytes = 400;
  round.download_bytes = 8000;
  report.rounds = {round, round};
  const Traffic traffic = TrafficOf(report);
  EXPECT_EQ(traffic.upload_bytes, 800u);
  EXPECT_EQ(traffic.updates, 8);
  EXPECT_DOUBLE_EQ(traffic.upload_per_update, 100);
  EXPECT_DOUBLE_EQ(traffic.download_per_update, 2000);
  EXPECT_DOUBLE_EQ(traffic.compression, 40);
}

TEST(RunReportTest, SpreadLooksAtNodesWithHeldOutDataOnly) {
  RunReport report;
  for (const double after : {1.0, 2.0, 3.5, 0.0}) {
    NodeResult node;
    node.validation_tokens = after > 0 ? 10 : 0;
    node.loss_before = 3;
    node.loss_after = after;
    report.nodes.push_back(node);
  }
  const Spread spread = SpreadOf(report);
  EXPECT_EQ(spread.nodes, 3);
  EXPECT_EQ(spread.improved, 2);
  EXPECT_DOUBLE_EQ(spread.change_median, -1);
  EXPECT_DOUBLE_EQ(spread.perplexity_after_median, std::exp(2.0));
}

}  // namespace
}  // namespace fedge
