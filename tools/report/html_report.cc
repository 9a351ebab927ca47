#include "tools/report/html_report.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "tools/report/progress.h"
#include "tools/report/svg_plot.h"

namespace fedge {
namespace {

constexpr char kStyle[] = R"css(
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1d2327;--soft:#5b6670;--line:#dfe3e6;
--s0:#1f66c9;--s1:#c2571a;--s2:#1b8a6b;--s3:#8a56b5;--s4:#8b949c}
@media (prefers-color-scheme:dark){:root{--bg:#14181b;--card:#1c2226;--ink:#e8ecef;--soft:#a3aeb7;
--line:#333c43;--s0:#6ea8ff;--s1:#ff9c5b;--s2:#4fd0a5;--s3:#c79af0;--s4:#8b969f}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.7rem;margin:0 0 4px}h2{font-size:1.1rem;margin:0 0 2px}
.sub{color:var(--soft);margin:0 0 22px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(260px,1fr));gap:12px;margin:0 0 20px}
.card,figure,section{background:var(--card);border:1px solid var(--line);border-radius:10px}
.card{padding:12px 14px}.card .k{color:var(--soft);font-size:.85rem}
.card .v{font-size:1.12rem;font-weight:600;line-height:1.25;margin:2px 0}
.card .n{color:var(--soft);font-size:.85rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,470px),1fr));gap:16px}
figure{margin:0;padding:14px 16px 8px}figcaption{margin-bottom:6px}
figcaption p{margin:0;color:var(--soft);font-size:.88rem}
section{padding:14px 16px;margin-top:16px}
svg{width:100%;height:auto;display:block;font-size:13px}
svg text{fill:var(--soft)}svg .label{fill:var(--ink)}svg .legend{fill:var(--ink)}
.mid{text-anchor:middle}.end{text-anchor:end}
.grid{stroke:var(--line);fill:none}.axis{stroke:var(--soft);fill:none}
.ref{stroke:var(--soft);fill:none;stroke-dasharray:3 4}
.l{fill:none;stroke-width:2.2;stroke-linejoin:round}.dash{stroke-dasharray:7 5}
.l.s0{stroke:var(--s0)}.l.s1{stroke:var(--s1)}.l.s2{stroke:var(--s2)}.l.s3{stroke:var(--s3)}
.l.s4{stroke:var(--s4)}.f.s0,.d.s0{fill:var(--s0)}.f.s1,.d.s1{fill:var(--s1)}
.f.s2,.d.s2{fill:var(--s2)}.f.s3,.d.s3{fill:var(--s3)}.f.s4,.d.s4{fill:var(--s4)}
.d{fill-opacity:.55}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px 4px 0;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:600}
table.settings td{text-align:left;white-space:normal;overflow-wrap:anywhere}
table.settings th{text-align:left;width:16rem}
.scroll{overflow-x:auto}summary{cursor:pointer;font-weight:600}
footer{color:var(--soft);font-size:.85rem;margin-top:24px}
)css";

double MB(double bytes) { return bytes / 1e6; }

std::string Percent(double fraction) { return absl::StrFormat("%.1f %%", 100 * fraction); }

std::string Figure(const Plot& plot) {
  return absl::StrCat("<figure><figcaption><h2>", EscapeXml(plot.title), "</h2><p>",
                      EscapeXml(plot.description), "</p></figcaption>", RenderSvg(plot),
                      "</figure>\n");
}

std::string Card(absl::string_view key, absl::string_view value, absl::string_view note) {
  return absl::StrCat("<div class=\"card\"><div class=\"k\">", EscapeXml(key),
                      "</div><div class=\"v\">", EscapeXml(value), "</div><div class=\"n\">",
                      EscapeXml(note), "</div></div>\n");
}

// Accuracy, or the loss when `accuracy` is false.
std::optional<double> Pick(const QualityPoint& quality, bool accuracy) {
  if (accuracy) return quality.label_accuracy;
  return quality.validation_loss;
}

PlotPoint At(double x, double y, absl::string_view where) {
  return {x, y, absl::StrFormat("%s: %.4g", std::string(where), y)};
}

PlotSeries FederatedByRound(const RunReport& report, bool accuracy) {
  PlotSeries series{.name = "federated", .style = SeriesStyle::kLine, .color = 0, .points = {}};
  if (const auto y = Pick(report.before, accuracy)) series.points.push_back(At(0, *y, "start"));
  for (const RoundRecord& round : report.rounds) {
    if (!round.quality) continue;
    const auto y = Pick(*round.quality, accuracy);
    const auto x = static_cast<double>(round.round);
    if (y) series.points.push_back(At(x, *y, absl::StrCat("round ", round.round)));
  }
  return series;
}

PlotSeries CentralizedByRound(const RunReport& report, bool accuracy) {
  PlotSeries series{.name = "centralised, same number of steps",
                    .style = SeriesStyle::kDashed,
                    .color = 1,
                    .points = {}};
  if (report.centralized.empty()) return series;
  if (const auto y = Pick(report.before, accuracy)) series.points.push_back(At(0, *y, "start"));
  for (const CentralizedPoint& point : report.centralized) {
    const auto y = Pick(point.quality, accuracy);
    if (y) series.points.push_back(At(point.round, *y, "centralised"));
  }
  return series;
}

void AddReference(const RunReport& report, bool accuracy, std::vector<PlotSeries>* series) {
  PlotSeries reference = CentralizedByRound(report, accuracy);
  if (!reference.points.empty()) series->push_back(std::move(reference));
}

Plot LossByRound(const RunReport& report) {
  Plot plot;
  plot.id = "loss-round";
  plot.title = "Held-out loss by round";
  plot.description = "Mean loss of the global adapter on the fixed held-out sample over all nodes.";
  plot.x = {.label = "round", .low = 0, .high = {}, .whole_numbers = true};
  plot.y.label = "validation loss (nats/token)";
  plot.series.push_back(FederatedByRound(report, false));
  AddReference(report, false, &plot.series);
  return plot;
}

Plot LossByTraffic(const RunReport& report) {
  Plot plot;
  plot.id = "loss-bytes";
  plot.title = "Held-out loss by traffic";
  plot.description = "The same loss against everything all nodes have sent and received so far.";
  plot.x = {.label = "cumulative traffic of all nodes (MB)", .low = 0, .high = {}};
  plot.y.label = "validation loss (nats/token)";
  PlotSeries up{
      .name = "sent by nodes only", .style = SeriesStyle::kLine, .color = 2, .points = {}};
  PlotSeries both{
      .name = "sent and received", .style = SeriesStyle::kLine, .color = 0, .points = {}};
  const PlotPoint start = At(0, report.before.validation_loss, "start");
  up.points.push_back(start);
  both.points.push_back(start);
  double sent = 0;
  double received = 0;
  for (const RoundRecord& round : report.rounds) {
    sent += static_cast<double>(round.upload_bytes);
    received += static_cast<double>(round.download_bytes);
    if (!round.quality) continue;
    const double loss = round.quality->validation_loss;
    const std::string where = absl::StrCat("round ", round.round);
    up.points.push_back(At(MB(sent), loss, where));
    both.points.push_back(At(MB(sent + received), loss, where));
  }
  plot.series = {up, both};
  if (!report.centralized.empty()) {
    const double loss = report.centralized.back().quality.validation_loss;
    plot.series.push_back({.name = "centralised, at its end",
                           .style = SeriesStyle::kDashed,
                           .color = 1,
                           .points = {{0, loss, ""}, {MB(sent + received), loss, ""}}});
  }
  return plot;
}

Plot AccuracyByRound(const RunReport& report) {
  Plot plot;
  plot.id = "accuracy";
  plot.title = "Label accuracy by round";
  plot.description = absl::StrFormat(
      "Share of %d held-out questions whose right label, one of %d, got the highest likelihood.",
      report.label_questions, report.label_count);
  plot.x = {.label = "round", .low = 0, .high = {}, .whole_numbers = true};
  plot.y = {.label = "accuracy", .low = 0, .high = {}, .whole_numbers = false, .percent = true};
  plot.series.push_back(FederatedByRound(report, true));
  AddReference(report, true, &plot.series);
  if (!report.rounds.empty()) {
    const auto last = static_cast<double>(report.rounds.back().round);
    plot.series.push_back(
        {.name = "always the most frequent label",
         .style = SeriesStyle::kDashed,
         .color = 4,
         .points = {{0, report.label_majority, ""}, {last, report.label_majority, ""}}});
  }
  return plot;
}

Plot NodeScatter(const RunReport& report) {
  Plot plot;
  plot.id = "nodes";
  plot.title = "Each node before and after";
  plot.description = "One dot a node, on its own held-out data; below the diagonal it gained.";
  plot.x.label = "loss before (nats/token)";
  plot.y.label = "loss after (nats/token)";
  plot.diagonal = true;
  plot.height = 380;
  PlotSeries joined{.name = "took part", .style = SeriesStyle::kDots, .color = 0, .points = {}};
  PlotSeries only_received{
      .name = "never drawn: only received", .style = SeriesStyle::kDots, .color = 1, .points = {}};
  for (const NodeResult& node : report.nodes) {
    if (node.validation_tokens == 0) continue;
    const std::string title =
        absl::StrFormat("%s: %.3f -> %.3f, %d rounds, %d records", node.node, node.loss_before,
                        node.loss_after, node.rounds, node.train_records);
    PlotSeries& series = node.rounds > 0 ? joined : only_received;
    series.points.push_back({node.loss_before, node.loss_after, title});
  }
  plot.series.push_back(std::move(joined));
  if (!only_received.points.empty()) plot.series.push_back(std::move(only_received));
  return plot;
}

Plot NodeSpread(const RunReport& report) {
  Plot plot;
  plot.id = "spread";
  plot.title = "Spread over the nodes";
  plot.description = "Change of each node's own held-out loss, sorted; below zero is better.";
  plot.x = {.label = "node, sorted by change", .low = {}, .high = {}, .whole_numbers = true};
  plot.y.label = "change of loss (nats/token)";
  plot.zero_line = true;
  plot.height = 380;
  std::vector<std::pair<double, const NodeResult*>> changes;
  for (const NodeResult& node : report.nodes) {
    if (node.validation_tokens > 0) changes.push_back({node.loss_after - node.loss_before, &node});
  }
  std::stable_sort(changes.begin(), changes.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  PlotSeries better{.name = "improved", .style = SeriesStyle::kBars, .color = 2, .points = {}};
  PlotSeries worse{.name = "got worse", .style = SeriesStyle::kBars, .color = 1, .points = {}};
  for (size_t i = 0; i < changes.size(); ++i) {
    PlotSeries& series = changes[i].first < 0 ? better : worse;
    series.points.push_back(
        {static_cast<double>(i + 1), changes[i].first,
         absl::StrFormat("%s: %+.3f", changes[i].second->node, changes[i].first)});
  }
  plot.series.push_back(std::move(better));
  if (!worse.points.empty()) plot.series.push_back(std::move(worse));
  return plot;
}

Plot BytesByRound(const RunReport& report) {
  Plot plot;
  plot.id = "bytes";
  plot.title = "Traffic by round";
  plot.description = "What all nodes of the round's cohort sent and received together.";
  plot.x = {.label = "round", .low = {}, .high = {}, .whole_numbers = true};
  plot.y = {.label = "traffic (MB)", .low = 0, .high = {}};
  PlotSeries up{.name = "sent (updates)", .style = SeriesStyle::kBars, .color = 2, .points = {}};
  PlotSeries down{
      .name = "received (global adapter)", .style = SeriesStyle::kBars, .color = 3, .points = {}};
  for (const RoundRecord& round : report.rounds) {
    const auto x = static_cast<double>(round.round);
    const auto sent = static_cast<double>(round.upload_bytes);
    const auto received = static_cast<double>(round.download_bytes);
    up.points.push_back(
        {x, MB(sent),
         absl::StrCat("round ", round.round, ": ", FormatBytes(round.upload_bytes), " sent")});
    down.points.push_back({x, MB(received),
                           absl::StrCat("round ", round.round, ": ",
                                        FormatBytes(round.download_bytes), " received")});
  }
  plot.series = {std::move(up), std::move(down)};
  return plot;
}

std::string Cards(const RunReport& report) {
  const Traffic traffic = TrafficOf(report);
  const Spread spread = SpreadOf(report);
  const double before = std::exp(report.before.validation_loss);
  const double after = std::exp(report.after.validation_loss);
  std::string out = Card("Held-out perplexity", absl::StrFormat("%.2f → %.2f", before, after),
                         absl::StrFormat("%+.1f %%", 100 * (after / before - 1)));
  if (report.before.label_accuracy && report.after.label_accuracy) {
    std::string note = absl::StrFormat("%d labels", report.label_count);
    if (!report.centralized.empty() && report.centralized.back().quality.label_accuracy) {
      note =
          absl::StrCat("centralised ", Percent(*report.centralized.back().quality.label_accuracy));
    }
    out += Card("Label accuracy",
                absl::StrCat(Percent(*report.before.label_accuracy), " → ",
                             Percent(*report.after.label_accuracy)),
                note);
  }
  if (spread.nodes > 0) {
    out += Card("Nodes that improved",
                absl::StrFormat("%.0f %%", 100.0 * static_cast<double>(spread.improved) /
                                               static_cast<double>(spread.nodes)),
                absl::StrCat(spread.improved, " of ", spread.nodes));
  }
  out += Card(
      "Sent per node and round", FormatBytes(static_cast<uint64_t>(traffic.upload_per_update)),
      absl::StrCat(FormatBytes(static_cast<uint64_t>(traffic.download_per_update)), " received"));
  out += Card("Update against fp32", absl::StrFormat("%.0f× smaller", traffic.compression),
              absl::StrFormat("%d adapter values", report.adapter_parameters));
  if (report.sections) {
    out += Card("Bits a parameter", absl::StrFormat("%.3g", report.sections->bits_per_parameter),
                absl::StrFormat("positions %.0f %%, values %.0f %%",
                                100 * report.sections->positions, 100 * report.sections->values));
  }
  out += Card(
      "Wall time", FormatTimeSpan(absl::Seconds(report.total_seconds)),
      absl::StrFormat("%.2f M tokens trained", static_cast<double>(report.train_tokens) / 1e6));
  return out;
}

std::string RoundTable(const RunReport& report) {
  std::string out =
      "<div class=\"scroll\"><table><thead><tr><th>round</th><th>accepted</th><th>rejected</th>"
      "<th>dropped</th><th>train loss</th><th>validation loss</th><th>perplexity</th>"
      "<th>accuracy</th><th>sent</th><th>received</th><th>time</th></tr></thead><tbody>\n";
  for (const RoundRecord& round : report.rounds) {
    const auto cell = [&](const std::string& text) {
      absl::StrAppend(&out, "<td>", EscapeXml(text), "</td>");
    };
    out += "<tr>";
    cell(absl::StrCat(round.round, round.version == 0 ? " (abandoned)" : ""));
    cell(absl::StrCat(round.accepted, "/", round.assigned));
    cell(absl::StrCat(round.rejected));
    cell(absl::StrCat(round.dropped));
    cell(std::isfinite(round.train_loss) ? absl::StrFormat("%.4f", round.train_loss) : "");
    cell(round.quality ? absl::StrFormat("%.4f", round.quality->validation_loss) : "");
    cell(round.quality ? absl::StrFormat("%.2f", std::exp(round.quality->validation_loss)) : "");
    cell(round.quality && round.quality->label_accuracy ? Percent(*round.quality->label_accuracy)
                                                        : "");
    cell(FormatBytes(round.upload_bytes));
    cell(FormatBytes(round.download_bytes));
    cell(FormatTimeSpan(absl::Seconds(round.seconds)));
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>";
}

std::string SettingsTable(const RunReport& report) {
  std::string out = "<table class=\"settings\"><tbody>\n";
  for (const auto& [name, value] : report.settings) {
    absl::StrAppend(&out, "<tr><th scope=\"row\">", EscapeXml(name), "</th><td>", EscapeXml(value),
                    "</td></tr>\n");
  }
  return out + "</tbody></table>";
}

}  // namespace

std::string HtmlReport(const RunReport& report) {
  std::string out = absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/><title>",
      EscapeXml(report.title), "</title><style>", kStyle, "</style></head><body><main>\n<h1>",
      EscapeXml(report.title), "</h1>\n<p class=\"sub\">", report.rounds.size(), " rounds, ",
      report.nodes.size(), " nodes. What was trained, what it cost, who gained.</p>\n");
  absl::StrAppend(&out, "<div class=\"cards\">\n", Cards(report), "</div>\n<div class=\"plots\">\n",
                  Figure(LossByRound(report)), Figure(LossByTraffic(report)));
  if (report.before.label_accuracy) out += Figure(AccuracyByRound(report));
  out += Figure(BytesByRound(report));
  if (SpreadOf(report).nodes > 0) {
    absl::StrAppend(&out, Figure(NodeScatter(report)), Figure(NodeSpread(report)));
  }
  absl::StrAppend(&out, "</div>\n<section><h2>Settings</h2>\n", SettingsTable(report),
                  "</section>\n<section><details><summary>All rounds as a table</summary>\n",
                  RoundTable(report), "</details></section>\n");
  // Written as escapes of JSON, no "<" can end the element early and the page stays well-formed.
  absl::StrAppend(
      &out, "<footer>The numbers of this page are in it as JSON: element <code>run-data</code>. ",
      "Hover over a point for its values.</footer>\n</main>\n",
      "<script type=\"application/json\" id=\"run-data\">",
      absl::StrReplaceAll(ReportJson(report, -1), {{"<", "\\u003c"}, {"&", "\\u0026"}}),
      "</script>\n</body></html>\n");
  return out;
}

}  // namespace fedge
