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

// A Markdown table for each data set: medians and ranges over seeds, against the reference's rows
// of the same seed; best total first. Methods without a row of the reference are left out.
std::string StudyTables(const std::vector<StudyRow>& rows);

// Loss against bytes, a line for each curve (the first seed's), as a picture of its own.
struct NamedCurve {
  std::string name;
  LossCurve curve;
};
std::string CurvesSvg(const std::string& dataset, const std::vector<NamedCurve>& curves);

// Times fewer bytes up, and both ways, until 95 %: a dot for each method and seed.
std::string FrontierSvg(const std::string& dataset, const std::vector<StudyRow>& rows);

// `page` with what is between "<!-- study -->" and "<!-- /study -->" replaced. InvalidArgument when
// the marks are not there.
absl::StatusOr<std::string> ReplaceStudy(absl::string_view page, absl::string_view tables);

}  // namespace fedge

#endif  // FEDGE_TESTS_QUALITY_STUDY_REPORT_H_
