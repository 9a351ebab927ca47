#include "tools/report/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace fedge {
namespace {

constexpr double kWidth = 640;
constexpr double kLeft = 68;
constexpr double kRight = 18;
constexpr double kBottom = 52;
constexpr double kLegendLine = 22;
constexpr double kCharWidth = 7.2;  // of the 13 px text, about
constexpr size_t kMaxMarkers = 60;  // more points than that: a bare line

struct Range {
  double low = 0;
  double high = 1;
  bool any = false;

  void Include(double value) {
    low = any ? std::min(low, value) : value;
    high = any ? std::max(high, value) : value;
    any = true;
  }
};

struct Frame {
  Range x, y;
  double top = 0;
  double bottom = 0;

  double X(double value) const {
    return kLeft + (value - x.low) / (x.high - x.low) * (kWidth - kLeft - kRight);
  }
  double Y(double value) const {
    return bottom - (value - y.low) / (y.high - y.low) * (bottom - top);
  }
};

bool Finite(const PlotPoint& point) { return std::isfinite(point.x) && std::isfinite(point.y); }

std::string Number(double value, int decimals) { return absl::StrFormat("%.*f", decimals, value); }

// "1", "10", "100", "1 k", ... "100 G", then as an exponent.
std::string PowerOfTen(double exponent) {
  constexpr const char* kPrefixes[] = {"", " k", " M", " G"};
  const int power = static_cast<int>(std::lround(exponent));
  if (power < 0 || power >= 12) return absl::StrCat("1e", power);
  constexpr const char* kDigits[] = {"1", "10", "100"};
  return absl::StrCat(kDigits[power % 3], kPrefixes[power / 3]);
}

std::string TickText(double value, int decimals, const PlotAxis& axis) {
  if (axis.powers_of_ten) return PowerOfTen(value);
  if (axis.percent) return absl::StrCat(Number(value * 100, std::max(0, decimals - 2)), "%");
  return Number(value == 0 ? 0 : value, decimals);
}

// Stacked bars: the height of everything below, by x.
using Stack = std::map<double, double>;

void Measure(const Plot& plot, Range* x, Range* y) {
  Stack stack;
  for (const PlotSeries& series : plot.series) {
    for (const PlotPoint& point : series.points) {
      if (!Finite(point)) continue;
      if (series.style == SeriesStyle::kBars) {
        x->Include(point.x - 0.5);
        x->Include(point.x + 0.5);
        y->Include(0);
        y->Include(stack[point.x] += point.y);
      } else {
        x->Include(point.x);
        y->Include(point.y);
      }
    }
  }
}

// The axis' own bounds where given; else the data with a little air, out to round ticks for y.
void Settle(const PlotAxis& axis, bool to_ticks, int tick_count, Range* range) {
  if (axis.low) range->low = *axis.low;
  if (axis.high) range->high = *axis.high;
  if (range->high - range->low < 1e-12) {
    const double air = std::max(1e-3, std::abs(range->low) * 0.05);
    if (!axis.low) range->low -= air;
    range->high += air;
  }
  if (!to_ticks) return;
  const Ticks ticks =
      RoundTicks(range->low, range->high, tick_count, axis.whole_numbers || axis.powers_of_ten);
  if (!axis.low) range->low = ticks.values.front();
  if (!axis.high) range->high = ticks.values.back();
}

std::string RenderLegend(const Plot& plot, double* height) {
  std::string out;
  double x = kLeft;
  double y = 14;
  for (const PlotSeries& series : plot.series) {
    if (series.name.empty()) continue;
    const double width = 34 + kCharWidth * static_cast<double>(series.name.size());
    if (x > kLeft && x + width > kWidth - kRight) {
      x = kLeft;
      y += kLegendLine;
    }
    const std::string mark =
        series.style == SeriesStyle::kBars
            ? absl::StrFormat(
                  "<rect class=\"f s%d\" x=\"%.1f\" y=\"%.1f\" width=\"16\" "
                  "height=\"10\" rx=\"2\"/>",
                  series.color, x, y - 9)
        : series.style == SeriesStyle::kDots
            ? absl::StrFormat("<circle class=\"f s%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>",
                              series.color, x + 8, y - 4)
            : absl::StrFormat("<path class=\"l s%d%s\" d=\"M%.1f %.1fh18\"/>", series.color,
                              series.style == SeriesStyle::kDashed ? " dash" : "", x, y - 4);
    absl::StrAppend(&out, mark,
                    absl::StrFormat("<text class=\"legend\" x=\"%.1f\" y=\"%.1f\">", x + 24, y),
                    EscapeXml(series.name), "</text>");
    x += width;
    *height = y + 12;
  }
  return out;
}

std::string RenderAxes(const Plot& plot, const Frame& frame) {
  std::string out;
  const double right = kWidth - kRight;
  const Ticks y_ticks =
      RoundTicks(frame.y.low, frame.y.high, 5, plot.y.whole_numbers || plot.y.powers_of_ten);
  for (const double tick : y_ticks.values) {
    if (tick < frame.y.low - 1e-9 || tick > frame.y.high + 1e-9) continue;
    const double y = frame.Y(tick);
    absl::StrAppendFormat(&out, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>", kLeft, y, right);
    absl::StrAppendFormat(&out, "<text class=\"tick end\" x=\"%.1f\" y=\"%.1f\">%s</text>",
                          kLeft - 8, y + 4, TickText(tick, y_ticks.decimals, plot.y));
  }
  const Ticks x_ticks =
      RoundTicks(frame.x.low, frame.x.high, 7, plot.x.whole_numbers || plot.x.powers_of_ten);
  for (const double tick : x_ticks.values) {
    if (tick < frame.x.low - 1e-9 || tick > frame.x.high + 1e-9) continue;
    const double x = frame.X(tick);
    absl::StrAppendFormat(&out, "<path class=\"axis\" d=\"M%.1f %.1fv5\"/>", x, frame.bottom);
    absl::StrAppendFormat(&out, "<text class=\"tick mid\" x=\"%.1f\" y=\"%.1f\">%s</text>", x,
                          frame.bottom + 19, TickText(tick, x_ticks.decimals, plot.x));
  }
  absl::StrAppendFormat(&out, "<path class=\"axis\" d=\"M%.1f %.1fV%.1fH%.1f\"/>", kLeft, frame.top,
                        frame.bottom, right);
  absl::StrAppendFormat(&out, "<text class=\"label mid\" x=\"%.1f\" y=\"%.1f\">%s</text>",
                        (kLeft + right) / 2, frame.bottom + 42, EscapeXml(plot.x.label));
  const double middle = (frame.top + frame.bottom) / 2;
  absl::StrAppendFormat(
      &out,
      "<text class=\"label mid\" x=\"16\" y=\"%.1f\" transform=\"rotate(-90 16 %.1f)\">%s</text>",
      middle, middle, EscapeXml(plot.y.label));
  return out;
}

std::string PointTitle(const PlotPoint& point) {
  const std::string text =
      point.title.empty() ? absl::StrFormat("%.6g, %.6g", point.x, point.y) : point.title;
  return absl::StrCat("<title>", EscapeXml(text), "</title>");
}

std::string RenderLine(const PlotSeries& series, const Frame& frame) {
  std::string path;
  for (const PlotPoint& point : series.points) {
    if (!Finite(point)) continue;
    absl::StrAppendFormat(&path, "%s%.2f %.2f", path.empty() ? "M" : "L", frame.X(point.x),
                          frame.Y(point.y));
  }
  std::string out = absl::StrFormat("<path class=\"l s%d%s\" d=\"%s\"/>", series.color,
                                    series.style == SeriesStyle::kDashed ? " dash" : "", path);
  if (series.points.size() > kMaxMarkers) return out;
  for (const PlotPoint& point : series.points) {
    if (!Finite(point)) continue;
    absl::StrAppendFormat(&out,
                          "<circle class=\"f s%d\" cx=\"%.2f\" cy=\"%.2f\" r=\"2.6\">%s</circle>",
                          series.color, frame.X(point.x), frame.Y(point.y), PointTitle(point));
  }
  return out;
}

std::string RenderDots(const PlotSeries& series, const Frame& frame) {
  std::string out;
  for (const PlotPoint& point : series.points) {
    if (!Finite(point)) continue;
    absl::StrAppendFormat(&out,
                          "<circle class=\"d s%d\" cx=\"%.2f\" cy=\"%.2f\" r=\"4\">%s</circle>",
                          series.color, frame.X(point.x), frame.Y(point.y), PointTitle(point));
  }
  return out;
}

std::string RenderBars(const PlotSeries& series, const Frame& frame, Stack* stack) {
  std::string out;
  const double slot = frame.X(1) - frame.X(0);
  const double width = std::max(0.8, slot > 8 ? std::min(slot - 3, 40.0) : slot * 0.9);
  for (const PlotPoint& point : series.points) {
    if (!Finite(point)) continue;
    double& base = (*stack)[point.x];
    const double from = frame.Y(base);
    const double to = frame.Y(base + point.y);
    absl::StrAppendFormat(
        &out,
        "<rect class=\"f s%d\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\">%s</rect>",
        series.color, frame.X(point.x) - width / 2, std::min(from, to), width, std::abs(from - to),
        PointTitle(point));
    base += point.y;
  }
  return out;
}

std::string RenderMarks(const Plot& plot, const Frame& frame) {
  std::string out;
  if (plot.diagonal) {
    const double low = std::max(frame.x.low, frame.y.low);
    const double high = std::min(frame.x.high, frame.y.high);
    absl::StrAppendFormat(&out, "<path class=\"ref\" d=\"M%.2f %.2fL%.2f %.2f\"/>", frame.X(low),
                          frame.Y(low), frame.X(high), frame.Y(high));
  }
  if (plot.zero_line) {
    absl::StrAppendFormat(&out, "<path class=\"axis\" d=\"M%.1f %.2fH%.1f\"/>", kLeft, frame.Y(0),
                          kWidth - kRight);
  }
  Stack stack;
  for (const PlotSeries& series : plot.series) {
    switch (series.style) {
      case SeriesStyle::kLine:
      case SeriesStyle::kDashed:
        out += RenderLine(series, frame);
        break;
      case SeriesStyle::kDots:
        out += RenderDots(series, frame);
        break;
      case SeriesStyle::kBars:
        out += RenderBars(series, frame, &stack);
        break;
    }
  }
  return out;
}

}  // namespace

std::string EscapeXml(absl::string_view text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

Ticks RoundTicks(double low, double high, int count, bool whole_numbers) {
  const double span = std::max(high - low, 1e-12);
  const double raw = span / std::max(1, count);
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  const double fraction = raw / power;
  double step = power * (fraction <= 1 ? 1 : fraction <= 2 ? 2 : fraction <= 5 ? 5 : 10);
  if (whole_numbers) step = std::max(1.0, std::round(step));
  Ticks ticks;
  ticks.decimals = std::max(0, static_cast<int>(-std::floor(std::log10(step) + 1e-9)));
  const auto first = static_cast<int64_t>(std::floor(low / step + 1e-9));
  const auto last = static_cast<int64_t>(std::ceil(high / step - 1e-9));
  for (int64_t i = first; i <= last; ++i) ticks.values.push_back(static_cast<double>(i) * step);
  return ticks;
}

std::string RenderSvg(const Plot& plot) {
  Frame frame;
  Measure(plot, &frame.x, &frame.y);
  const bool any = frame.x.any;
  Settle(plot.x, plot.diagonal, 7, &frame.x);
  Settle(plot.y, true, 5, &frame.y);
  double legend_height = 8;
  const std::string legend = RenderLegend(plot, &legend_height);
  frame.top = legend_height + 8;
  frame.bottom = plot.height - kBottom;
  std::string out = absl::StrFormat(
      "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-labelledby=\"%s-title %s-desc\">", kWidth,
      plot.height, plot.id, plot.id);
  absl::StrAppend(&out, "<title id=\"", plot.id, "-title\">", EscapeXml(plot.title), "</title>",
                  "<desc id=\"", plot.id, "-desc\">", EscapeXml(plot.description), "</desc>");
  if (any) {
    absl::StrAppend(&out, legend, RenderAxes(plot, frame), RenderMarks(plot, frame));
  } else {
    absl::StrAppendFormat(&out, "<text class=\"label mid\" x=\"%.0f\" y=\"%.0f\">no values</text>",
                          kWidth / 2, plot.height / 2);
  }
  absl::StrAppend(&out, "</svg>");
  return out;
}

}  // namespace fedge
