// Tables and plots of a study, for docs/quality.md.
#ifndef FEDGE_TESTS_QUALITY_STUDY_REPORT_H_
#define FEDGE_TESTS_QUALITY_STUDY_REPORT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tests/quality/study.h"

namespace fedge {

// "round,up,down,loss" lines with a header, and back (InvalidArgument names the line).
std::string CurveCsv(const LossCurve& curve);
absl::StatusOr<LossCurve> ParseCurve(absl::string_view csv);

// One line: how many times fewer bytes than `reference` at each target, and the final gap.
std::string DescribeRow(const StudyRow& row, const StudyRow& reference);

// A Markdown table for each data set and number of nodes: medians and ranges over seeds, against
// the reference's rows of the same seed; best total first. Methods without a row of the reference
// are left out.
std::string StudyTables(const std::vector<StudyRow>& rows);

// A method's run beside the reference's of its seed.
struct ComparedCurve {
  std::string method;
  std::string family;
  LossCurve curve;
  LossCurve reference;
};

// Improvement against bytes both ways, as a picture of its own: a line for each curve, in one
// colour for each method. Curves of one method stand together.
std::string CurvesSvg(const std::string& title, const std::vector<ComparedCurve>& curves);

// The gap at the end against the bytes of the whole run, sent by nodes or both ways: a line for
// each family through its methods' medians over seeds, a bar from the least to the largest gap.
enum class CountedBytes { kUp, kBoth };
std::string FrontierSvg(const std::string& title, const std::vector<ComparedCurve>& curves,
                        CountedBytes counted);

// `page` with what is between "<!-- study -->" and "<!-- /study -->" replaced. InvalidArgument when
// the marks are not there.
absl::StatusOr<std::string> ReplaceStudy(absl::string_view page, absl::string_view tables);

}  // namespace fedge

#endif  // FEDGE_TESTS_QUALITY_STUDY_REPORT_H_
