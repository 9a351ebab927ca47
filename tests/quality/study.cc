#include "tests/quality/study.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/base/status.h"

namespace fedge {

LossCurve CurveOf(const RunReport& report, int64_t fp32_values) {
  LossCurve curve;
  curve.loss.push_back(report.before.validation_loss);
  curve.up.push_back(0);
  curve.down.push_back(0);
  const auto message = static_cast<uint64_t>(fp32_values) * sizeof(float);
  for (const RoundRecord& round : report.rounds) {
    const uint64_t up =
        fp32_values > 0 ? message * static_cast<uint64_t>(round.accepted) : round.upload_bytes;
    const uint64_t down =
        fp32_values > 0 ? message * static_cast<uint64_t>(round.assigned) : round.download_bytes;
    curve.up.push_back(curve.up.back() + up);
    curve.down.push_back(curve.down.back() + down);
    curve.loss.push_back(round.quality ? round.quality->validation_loss : curve.loss.back());
  }
  return curve;
}

double GapOf(double loss, const LossCurve& reference) {
  const double final_loss = reference.loss.back();
  return (loss - final_loss) / (reference.loss.front() - final_loss);
}

StudyRow Compare(const LossCurve& curve, const LossCurve& reference) {
  StudyRow row;
  row.rounds = curve.rounds();
  row.final_loss = curve.loss.back();
  const double start = reference.loss.front();
  const double improvement = start - reference.loss.back();
  row.final_gap = GapOf(row.final_loss, reference);
  for (size_t t = 0; t < kTargets.size(); ++t) {
    const double target = start - kTargets[t] * improvement;
    const auto reached = std::find_if(curve.loss.begin(), curve.loss.end(),
                                      [target](double loss) { return loss <= target; });
    if (reached == curve.loss.end()) continue;
    const auto round = static_cast<size_t>(reached - curve.loss.begin());
    row.at[t] = BytesAtTarget{curve.up[round], curve.down[round], static_cast<int64_t>(round)};
  }
  return row;
}

std::string CsvLine(const StudyRow& row) {
  std::string line =
      absl::StrCat(row.method, ",", row.seed, ",", row.dataset, ",", row.nodes, ",", row.rounds);
  for (const auto& at : row.at) {
    absl::StrAppend(&line, ",", at ? absl::StrCat(at->up) : "", ",",
                    at ? absl::StrCat(at->down) : "");
  }
  absl::StrAppendFormat(&line, ",%.5f,%.5f", row.final_loss, row.final_gap);
  return line;
}

absl::StatusOr<std::vector<StudyRow>> ParseStudy(absl::string_view csv) {
  std::vector<StudyRow> rows;
  const std::vector<absl::string_view> lines = absl::StrSplit(csv, '\n', absl::SkipEmpty());
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i == 0 && lines[i] == kStudyHeader) continue;
    const std::vector<absl::string_view> field = absl::StrSplit(lines[i], ',');
    StudyRow row;
    bool good = field.size() == 7 + 2 * kTargets.size() && absl::SimpleAtoi(field[1], &row.seed) &&
                absl::SimpleAtoi(field[3], &row.nodes) && absl::SimpleAtoi(field[4], &row.rounds);
    for (size_t t = 0; good && t < kTargets.size(); ++t) {
      const absl::string_view up = field[5 + 2 * t], down = field[6 + 2 * t];
      if (up.empty() && down.empty()) continue;
      BytesAtTarget& at = row.at[t].emplace();
      good = absl::SimpleAtoi(up, &at.up) && absl::SimpleAtoi(down, &at.down);
    }
    good = good && absl::SimpleAtod(field[5 + 2 * kTargets.size()], &row.final_loss) &&
           absl::SimpleAtod(field[6 + 2 * kTargets.size()], &row.final_gap);
    if (!good) {
      return absl::InvalidArgumentError(
          absl::StrCat("study: line ", i + 1, " is not a row of ", kStudyHeader));
    }
    row.method = std::string(field[0]);
    row.dataset = std::string(field[2]);
    rows.push_back(std::move(row));
  }
  return rows;
}

double Median(std::vector<double> values) {
  FEDGE_CHECK(!values.empty(), "median of nothing");
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace fedge
