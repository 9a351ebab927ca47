#include "tests/quality/study_report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "tests/quality/methods.h"
#include "tools/report/svg_plot.h"

namespace fedge {
namespace {

constexpr absl::string_view kCurveHeader = "round,up,down,loss";
constexpr absl::string_view kBegin = "<!-- study -->\n";
constexpr absl::string_view kEnd = "<!-- /study -->";

// How many times fewer bytes than the reference until a target.
struct Savings {
  double up = 0, both = 0;
};
std::optional<Savings> SavingsAt(const StudyRow& row, const StudyRow& reference, size_t target) {
  if (!row.at[target] || !reference.at[target]) return std::nullopt;
  const BytesAtTarget& a = *row.at[target];
  const BytesAtTarget& b = *reference.at[target];
  const auto bytes = [](uint64_t n) { return std::max(1.0, static_cast<double>(n)); };
  return Savings{bytes(b.up) / bytes(a.up), bytes(b.up + b.down) / bytes(a.up + a.down)};
}

const StudyRow* ReferenceOf(const StudyRow& row, const std::vector<StudyRow>& rows) {
  for (const StudyRow& other : rows) {
    if (other.method == kReferenceMethod && other.dataset == row.dataset &&
        other.seed == row.seed && other.nodes == row.nodes) {
      return &other;
    }
  }
  return nullptr;
}

std::string Times(double value) { return absl::StrFormat(value < 10 ? "%.1f" : "%.0f", value); }

// "112 (98-120)", or "-" when some seed did not get there.
std::string Summary(const std::vector<double>& values, size_t seeds) {
  if (values.size() < seeds) {
    return values.empty() ? "-" : absl::StrCat("- (", values.size(), " of ", seeds, ")");
  }
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  if (seeds == 1) return Times(values[0]);
  return absl::StrCat(Times(Median(values)), " (", Times(*low), "-", Times(*high), ")");
}

struct MethodSummary {
  std::string name;
  size_t seeds = 0;
  std::vector<double> up80, up95, both80, both95, gap, rounds;
};

std::string TableRow(const MethodSummary& m) {
  std::vector<double> gap = m.gap;
  for (double& value : gap) value *= 100;
  const auto [low, high] = std::minmax_element(gap.begin(), gap.end());
  return absl::StrCat("| ", m.name, " | ", m.seeds, " | ", Summary(m.up80, m.seeds), " | ",
                      Summary(m.both80, m.seeds), " | ", Summary(m.up95, m.seeds), " | ",
                      Summary(m.both95, m.seeds), " | ",
                      absl::StrFormat("%.1f (%.1f to %.1f)", Median(gap), *low, *high), " | ",
                      Times(Median(m.rounds)), " |\n");
}

// A picture in a file of its own: the page's colours come with it.
std::string Standalone(const std::string& svg) {
  constexpr absl::string_view kStyle =
      "<style>text{font:13px sans-serif;fill:#3b4650}.end{text-anchor:end}.mid{text-anchor:middle}"
      ".grid{stroke:#dfe4e8;fill:none}.axis{stroke:#8b949c;fill:none}"
      ".l{fill:none;stroke-width:2}.dash{stroke-dasharray:7 5}"
      ".l.s0{stroke:#1f66c9}.l.s1{stroke:#c2571a}.l.s2{stroke:#1b8a6b}.l.s3{stroke:#8a56b5}"
      ".l.s4{stroke:#8b949c}.f.s0,.d.s0{fill:#1f66c9}.f.s1,.d.s1{fill:#c2571a}"
      ".f.s2,.d.s2{fill:#1b8a6b}.f.s3,.d.s3{fill:#8a56b5}.f.s4,.d.s4{fill:#8b949c}</style>"
      "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>";
  std::string out = svg;
  out.replace(0, 4, "<svg xmlns=\"http://www.w3.org/2000/svg\"");
  out.insert(out.find('>') + 1, std::string(kStyle));
  return out + "\n";
}

constexpr int kColors = 5;

double Log10(double value) { return std::log10(std::max(value, 1.0)); }

double BytesOf(const LossCurve& curve, size_t round, CountedBytes counted) {
  const uint64_t down = counted == CountedBytes::kBoth ? curve.down[round] : 0;
  return static_cast<double>(curve.up[round] + down);
}

}  // namespace

std::string CurveCsv(const LossCurve& curve) {
  std::string csv = absl::StrCat(kCurveHeader, "\n");
  for (size_t i = 0; i < curve.loss.size(); ++i) {
    absl::StrAppendFormat(&csv, "%d,%d,%d,%.6f\n", i, curve.up[i], curve.down[i], curve.loss[i]);
  }
  return csv;
}

absl::StatusOr<LossCurve> ParseCurve(absl::string_view csv) {
  LossCurve curve;
  const std::vector<absl::string_view> lines = absl::StrSplit(csv, '\n', absl::SkipEmpty());
  for (size_t i = 1; i < lines.size(); ++i) {
    const std::vector<absl::string_view> field = absl::StrSplit(lines[i], ',');
    uint64_t up = 0, down = 0;
    double loss = 0;
    if (field.size() != 4 || !absl::SimpleAtoi(field[1], &up) ||
        !absl::SimpleAtoi(field[2], &down) || !absl::SimpleAtod(field[3], &loss)) {
      return absl::InvalidArgumentError(
          absl::StrCat("curve: line ", i + 1, " is not ", kCurveHeader));
    }
    curve.up.push_back(up);
    curve.down.push_back(down);
    curve.loss.push_back(loss);
  }
  if (curve.loss.empty()) return absl::InvalidArgumentError("curve: no rounds");
  return curve;
}

std::string DescribeRow(const StudyRow& row, const StudyRow& reference) {
  std::string text = absl::StrFormat("%-18s seed %d %-10s", row.method, row.seed, row.dataset);
  for (size_t t = 0; t < kTargets.size(); ++t) {
    const auto savings = SavingsAt(row, reference, t);
    absl::StrAppendFormat(&text, "  %.0f%%:", 100 * kTargets[t]);
    if (savings) {
      absl::StrAppendFormat(&text, " round %d, %.1fx up, %.1fx both", row.at[t]->round, savings->up,
                            savings->both);
    } else {
      absl::StrAppend(&text, " not reached");
    }
  }
  absl::StrAppendFormat(&text, "  final %.4f, gap %.2f%%", row.final_loss, 100 * row.final_gap);
  return text;
}

std::string StudyTables(const std::vector<StudyRow>& rows) {
  // By data set and nodes, then method.
  std::map<std::pair<std::string, int64_t>, std::map<std::string, MethodSummary>> summaries;
  for (const StudyRow& row : rows) {
    const StudyRow* const reference = ReferenceOf(row, rows);
    if (reference == nullptr) continue;
    MethodSummary& summary = summaries[{row.dataset, row.nodes}][row.method];
    summary.name = row.method;
    ++summary.seeds;
    summary.gap.push_back(row.final_gap);
    summary.rounds.push_back(static_cast<double>(row.rounds));
    if (const auto at = SavingsAt(row, *reference, 1)) {
      summary.up80.push_back(at->up);
      summary.both80.push_back(at->both);
    }
    if (const auto at = SavingsAt(row, *reference, 2)) {
      summary.up95.push_back(at->up);
      summary.both95.push_back(at->both);
    }
  }
  std::string out;
  for (const auto& [group, methods] : summaries) {
    std::vector<MethodSummary> order;
    for (const auto& [name, summary] : methods) order.push_back(summary);
    const auto score = [](const MethodSummary& m) {
      return m.both95.size() < m.seeds ? 0 : Median(m.both95);
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](const auto& a, const auto& b) { return score(a) > score(b); });
    absl::StrAppend(
        &out, "### ", group.first, ", ", group.second,
        " nodes\n\nTimes fewer bytes than dense-fp32 until its loss at 80 % and 95 % of its "
        "improvement: median (range) over seeds.\n\n"
        "| method | seeds | up, 80 % | both ways, 80 % | up, 95 % | both ways, 95 % | "
        "final gap, % | rounds |\n|---|---|---|---|---|---|---|---|\n");
    for (const MethodSummary& summary : order) out += TableRow(summary);
    out += "\n";
  }
  return out;
}

std::string CurvesSvg(const std::string& title, const std::vector<ComparedCurve>& curves) {
  Plot plot;
  plot.id = "curves";
  plot.title = title;
  plot.description = "The further left a line rises, the fewer bytes it needs; a line is a seed.";
  plot.x.label = "bytes sent and received by all nodes";
  plot.x.powers_of_ten = true;
  plot.y.label = "share of the reference's improvement";
  plot.y.percent = true;
  plot.height = 420;
  int methods = 0;
  for (const ComparedCurve& compared : curves) {
    const bool first = &compared == &curves.front() || (&compared)[-1].method != compared.method;
    if (first) ++methods;
    PlotSeries series{.name = first ? compared.method : "",
                      .style = methods <= kColors ? SeriesStyle::kLine : SeriesStyle::kDashed,
                      .color = (methods - 1) % kColors,
                      .points = {}};
    const LossCurve& curve = compared.curve;
    for (size_t r = 1; r < curve.loss.size(); ++r) {
      series.points.push_back({Log10(BytesOf(curve, r, CountedBytes::kBoth)),
                               1 - GapOf(curve.loss[r], compared.reference),
                               absl::StrCat(compared.method, ", round ", r)});
    }
    plot.series.push_back(std::move(series));
  }
  return Standalone(RenderSvg(plot));
}

std::string FrontierSvg(const std::string& title, const std::vector<ComparedCurve>& curves,
                        CountedBytes counted) {
  struct Runs {
    std::vector<double> bytes, gap;
  };
  std::vector<std::string> families;  // in the order they come
  std::map<std::string, std::map<std::string, Runs>> methods_of;
  for (const ComparedCurve& compared : curves) {
    if (methods_of.count(compared.family) == 0) families.push_back(compared.family);
    Runs& runs = methods_of[compared.family][compared.method];
    const LossCurve& curve = compared.curve;
    runs.bytes.push_back(Log10(BytesOf(curve, curve.loss.size() - 1, counted)));
    runs.gap.push_back(GapOf(curve.loss.back(), compared.reference));
  }
  Plot plot;
  plot.id = "frontier";
  plot.title = title;
  plot.description =
      "Left and low is better; bars reach from the least to the largest of the seeds.";
  plot.x.label = counted == CountedBytes::kUp ? "bytes sent by all nodes in the run"
                                              : "bytes sent and received by all nodes in the run";
  plot.x.powers_of_ten = true;
  plot.y.label = "gap to the reference at the end, of its improvement";
  plot.y.percent = true;
  plot.zero_line = true;
  plot.height = 460;
  for (size_t f = 0; f < families.size(); ++f) {
    const int color = static_cast<int>(f) % kColors;
    PlotSeries line{
        .name = families[f],
        .style = static_cast<int>(f) < kColors ? SeriesStyle::kLine : SeriesStyle::kDashed,
        .color = color,
        .points = {}};
    for (const auto& [method, runs] : methods_of[families[f]]) {
      const double bytes = Median(runs.bytes);
      const auto [low, high] = std::minmax_element(runs.gap.begin(), runs.gap.end());
      line.points.push_back({bytes, Median(runs.gap), method});
      plot.series.push_back({.name = "",
                             .style = SeriesStyle::kLine,
                             .color = color,
                             .points = {{bytes, *low, method}, {bytes, *high, method}}});
    }
    std::sort(line.points.begin(), line.points.end(),
              [](const PlotPoint& a, const PlotPoint& b) { return a.x < b.x; });
    plot.series.push_back(std::move(line));
  }
  return Standalone(RenderSvg(plot));
}

absl::StatusOr<std::string> ReplaceStudy(absl::string_view page, absl::string_view tables) {
  const size_t begin = page.find(kBegin);
  const size_t end = page.find(kEnd);
  if (begin == page.npos || end == page.npos || end < begin) {
    return absl::InvalidArgumentError(
        absl::StrCat("the page has no ", kBegin.substr(0, kBegin.size() - 1), " ... ", kEnd));
  }
  return absl::StrCat(page.substr(0, begin + kBegin.size()), tables, page.substr(end));
}

}  // namespace fedge
