#include "tools/report/text_report.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tools/report/progress.h"

namespace fedge {
namespace {

constexpr size_t kMaxRows = 12;

std::string AccuracyText(const QualityPoint& quality) {
  return quality.label_accuracy ? absl::StrFormat("%.1f%%", 100 * *quality.label_accuracy) : "";
}

std::string QualityText(const QualityPoint& quality) {
  return absl::StrFormat("%10.4f  %10.2f  %8s", quality.validation_loss,
                         std::exp(quality.validation_loss), AccuracyText(quality));
}

void AppendRow(absl::string_view name, absl::string_view value, std::string* out) {
  absl::StrAppendFormat(out, "%-27s %s\n", name, value);
}

// Evenly spread rows, with the first and the last.
std::string RoundRows(const RunReport& report) {
  std::string out =
      "round     nodes  train loss  valid. loss  perplexity  accuracy      sent  received\n";
  absl::StrAppendFormat(&out, "start  %7s  %10s   %s\n", "", "", QualityText(report.before));
  const size_t count = report.rounds.size();
  const size_t rows = std::min(count, kMaxRows);
  size_t shown = count;
  for (size_t row = 0; row < rows; ++row) {
    const size_t i = rows == 1 ? 0 : row * (count - 1) / (rows - 1);
    if (i == shown) continue;
    shown = i;
    const RoundRecord& round = report.rounds[i];
    absl::StrAppendFormat(
        &out, "%5d  %7s  %10.4f   %s  %8s  %8s\n", round.round,
        absl::StrCat(round.accepted, "/", round.assigned), round.train_loss,
        round.quality ? QualityText(*round.quality) : absl::StrFormat("%32s", "abandoned"),
        FormatBytes(round.upload_bytes), FormatBytes(round.download_bytes));
  }
  return out;
}

std::string CentralizedText(const RunReport& report, bool accuracy) {
  if (report.centralized.empty()) return "";
  const QualityPoint& last = report.centralized.back().quality;
  if (accuracy && !last.label_accuracy) return "";
  return absl::StrCat(
      "   (centralised: ",
      accuracy ? AccuracyText(last) : absl::StrFormat("%.2f", std::exp(last.validation_loss)), ")");
}

void AppendSections(const UpdateSections& sections, std::string* out) {
  AppendRow("bits a parameter",
            absl::StrFormat("%.4g (entropy %.4g): header %.1f%%, positions %.1f%%, scales %.1f%%, "
                            "values %.1f%%",
                            sections.bits_per_parameter, sections.floor_bits_per_parameter,
                            100 * sections.header, 100 * sections.positions, 100 * sections.scales,
                            100 * sections.values),
            out);
  std::string kinds;
  for (const auto& [kind, share] : sections.tensors) {
    absl::StrAppend(&kinds, kinds.empty() ? "; " : ", ", kind,
                    absl::StrFormat(" %.0f%%", 100 * share));
  }
  AppendRow("values sent",
            absl::StrFormat("A %.0f%%, B %.0f%%%s", 100 * sections.a_share,
                            100 * (1 - sections.a_share), kinds),
            out);
}

}  // namespace

std::string TextReport(const RunReport& report) {
  const Traffic traffic = TrafficOf(report);
  const Spread spread = SpreadOf(report);
  std::string out = RoundRows(report) + "\n";
  const double before = std::exp(report.before.validation_loss);
  const double after = std::exp(report.after.validation_loss);
  AppendRow("held-out perplexity",
            absl::StrFormat("%.2f -> %.2f (%+.1f%%)%s", before, after, 100 * (after / before - 1),
                            CentralizedText(report, false)),
            &out);
  if (report.label_questions > 0 && report.after.label_accuracy) {
    AppendRow("label accuracy",
              absl::StrFormat("%s -> %s of %d questions, %d labels%s", AccuracyText(report.before),
                              AccuracyText(report.after), report.label_questions,
                              report.label_count, CentralizedText(report, true)),
              &out);
  }
  if (spread.nodes > 0) {
    AppendRow(
        "nodes that improved",
        absl::StrFormat(
            "%d of %d (%.0f%%); median perplexity %.2f -> %.2f", spread.improved, spread.nodes,
            100.0 * static_cast<double>(spread.improved) / static_cast<double>(spread.nodes),
            spread.perplexity_before_median, spread.perplexity_after_median),
        &out);
    AppendRow("change of a node's loss",
              absl::StrFormat("p10 %+.3f, median %+.3f, p90 %+.3f nats/token", spread.change_p10,
                              spread.change_median, spread.change_p90),
              &out);
  }
  AppendRow("bytes per node and round",
            absl::StrCat(FormatBytes(static_cast<uint64_t>(traffic.upload_per_update)), " up, ",
                         FormatBytes(static_cast<uint64_t>(traffic.download_per_update)), " down"),
            &out);
  AppendRow(
      "bytes in all",
      absl::StrCat(FormatBytes(traffic.upload_bytes), " up, ", FormatBytes(traffic.download_bytes),
                   " down, ", traffic.updates, " updates"),
      &out);
  double error = 0;
  for (const RoundRecord& round : report.rounds) error = std::max(error, round.aggregation_error);
  if (error > 0) {
    AppendRow("aggregation error",
              absl::StrFormat("at most %.2f%% of a round's mean of products", 100 * error), &out);
  }
  AppendRow("update against fp32",
            absl::StrFormat("%.0f times smaller (%s values)", traffic.compression,
                            FormatCount(report.adapter_parameters)),
            &out);
  if (report.sections) AppendSections(*report.sections, &out);
  std::string time = FormatTimeSpan(absl::Seconds(report.total_seconds));
  if (report.centralized_seconds > 0) {
    absl::StrAppend(&time, " (rounds ", FormatTimeSpan(absl::Seconds(report.federated_seconds)),
                    ", centralised reference ",
                    FormatTimeSpan(absl::Seconds(report.centralized_seconds)), ")");
  }
  AppendRow("wall time", time, &out);
  return out;
}

}  // namespace fedge
