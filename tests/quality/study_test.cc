#include "tests/quality/study.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/quality/methods.h"
#include "tests/quality/study_report.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

LossCurve Curve(std::vector<double> loss, uint64_t up, uint64_t down) {
  LossCurve curve;
  curve.loss = std::move(loss);
  for (uint64_t i = 0; i < curve.loss.size(); ++i) {
    curve.up.push_back(i * up);
    curve.down.push_back(i * down);
  }
  return curve;
}

// Improves by 1: the targets are 3.5, 3.2 and 3.05.
LossCurve Reference() { return Curve({4, 3.4, 3.2, 3.04, 3}, 1000, 2000); }

TEST(StudyTest, ReadsBytesOffAtTheFirstRoundThatIsGoodEnough) {
  const StudyRow row = Compare(Curve({4, 3.6, 3.5, 3.1, 3.04, 3.2, 3.01}, 10, 30), Reference());
  ASSERT_TRUE(row.at[0] && row.at[1] && row.at[2]);
  EXPECT_EQ(row.at[0]->round, 2);
  EXPECT_EQ(row.at[0]->up, 20u);
  EXPECT_EQ(row.at[0]->down, 60u);
  EXPECT_EQ(row.at[1]->round, 3);
  EXPECT_EQ(row.at[2]->round, 4);
  EXPECT_EQ(row.rounds, 6);
  EXPECT_NEAR(row.final_gap, 0.01, 1e-12);
}

TEST(StudyTest, LeavesTargetsThatWereNotReachedEmpty) {
  StudyRow row = Compare(Curve({4, 3.3, 3.25}, 10, 30), Reference());
  EXPECT_TRUE(row.at[0]);
  EXPECT_FALSE(row.at[1]);
  row.method = "m";
  row.seed = 7;
  row.dataset = "d";
  row.nodes = 20;
  EXPECT_EQ(CsvLine(row), "m,7,d,20,2,10,30,,,,,3.25000,0.25000");
}

TEST(StudyTest, RowsComeBackFromTheCsv) {
  StudyRow row = Compare(Curve({4, 3.3, 3.25}, 10, 30), Reference());
  row.method = "m";
  row.dataset = "d";
  const auto rows = ParseStudy(absl::StrCat(kStudyHeader, "\n", CsvLine(row), "\n"));
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 1u);
  EXPECT_EQ(CsvLine((*rows)[0]), CsvLine(row));
  EXPECT_EQ(ParseStudy("m,7,d,20,2,10,,,,,,3.2,0.2").status().message(),
            absl::StrCat("study: line 1 is not a row of ", kStudyHeader));
}

TEST(StudyTest, CountsTheReferenceAsFp32) {
  RunReport report;
  report.before.validation_loss = 4;
  RoundRecord round;
  round.assigned = 3;
  round.accepted = 2;
  round.upload_bytes = 50;
  round.download_bytes = 70;
  round.quality.emplace().validation_loss = 3.5;
  report.rounds = {round, round};
  EXPECT_EQ(CurveOf(report, 0).up.back(), 100u);
  EXPECT_EQ(CurveOf(report, 0).down.back(), 140u);
  EXPECT_EQ(CurveOf(report, 10).up.back(), 2u * 2 * 40);
  EXPECT_EQ(CurveOf(report, 10).down.back(), 2u * 3 * 40);
}

TEST(StudyTest, TablesShowMediansAndRangesAgainstTheSeedsReference) {
  std::vector<StudyRow> rows;
  for (const uint64_t seed : {1, 2, 3}) {
    rows.push_back(Compare(Reference(), Reference()));
    rows.back().method = kReferenceMethod;
    rows.push_back(Compare(Curve({4, 3.4, 3.2, 3.04, 3}, 10 * seed, 0), Reference()));
    rows.back().method = "small";
    for (StudyRow& row : rows) row.dataset = "d";
    rows[rows.size() - 2].seed = rows.back().seed = seed;
  }
  const std::string tables = StudyTables(rows);
  EXPECT_THAT(tables, HasSubstr("| small | 3 | 50 (33-100) | 150 (100-300) | 50 (33-100) | "
                                "150 (100-300) | 0.0 (0.0 to 0.0) | 4.0 |"));
  EXPECT_LT(tables.find("| small |"), tables.find("| dense-fp32 |"));
  EXPECT_EQ(ReplaceStudy("a\n<!-- study -->\nold\n<!-- /study -->\nb", "new\n").value(),
            "a\n<!-- study -->\nnew\n<!-- /study -->\nb");
  EXPECT_EQ(ReplaceStudy("a", "new").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(StudyTest, CurvesComeBackAndAreDrawn) {
  const auto curve = ParseCurve(CurveCsv(Reference()));
  ASSERT_TRUE(curve.ok()) << curve.status();
  EXPECT_EQ(curve->loss, Reference().loss);
  EXPECT_EQ(curve->down, Reference().down);
  const std::vector<ComparedCurve> curves = {
      {"dense", "all values", Reference(), Reference()},
      {"coarse", "top-k", Curve({4, 3.8, 3.6, 3.4, 3.2}, 10, 0), Reference()},
      {"coarse", "top-k", Curve({4, 3.8, 3.6, 3.4, 3.3}, 10, 0), Reference()}};
  const std::string svg = CurvesSvg("d", curves);
  EXPECT_THAT(svg, StartsWith("<svg xmlns="));
  EXPECT_THAT(svg, HasSubstr(">10 k<"));
  EXPECT_THAT(svg, HasSubstr(">coarse</text>"));
  EXPECT_EQ(svg.find(">coarse</text>"), svg.rfind(">coarse</text>")) << "once for both seeds";
  const std::string frontier = FrontierSvg("d", curves, CountedBytes::kUp);
  // 40 bytes; the gaps are 20 % and 30 %, their median between them.
  EXPECT_THAT(frontier, HasSubstr(">top-k</text>"));
  EXPECT_THAT(frontier, HasSubstr("<title>coarse</title>"));
  EXPECT_EQ(ParseCurve("round,up,down,loss\n0,0,x,4\n").status().message(),
            "curve: line 2 is not round,up,down,loss");
}

}  // namespace
}  // namespace fedge
