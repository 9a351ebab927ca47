// Small plots as inline SVG: lines, dots, stacked bars on axes with round ticks and units.
//
// Colours are CSS classes (s0..s4, axis, grid) that the page defines for light and dark. No script,
// no external resource; every plot has a title and a description for screen readers.
#ifndef FEDGE_TOOLS_REPORT_SVG_PLOT_H_
#define FEDGE_TOOLS_REPORT_SVG_PLOT_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace fedge {

struct PlotPoint {
  double x = 0;
  double y = 0;
  std::string title;  // shown when pointed at; empty: "x, y"
};

enum class SeriesStyle { kLine, kDashed, kDots, kBars };

struct PlotSeries {
  std::string name;  // in the legend; empty: none
  SeriesStyle style = SeriesStyle::kLine;
  int color = 0;  // 0..4
  std::vector<PlotPoint> points;
};

struct PlotAxis {
  std::string label;  // with its unit: "validation loss (nats/token)"
  std::optional<double> low;
  std::optional<double> high;
  bool whole_numbers = false;
  bool percent = false;        // values are fractions, ticks read "40%"
  bool powers_of_ten = false;  // values are exponents, ticks read "10 k"
};

struct Plot {
  std::string id;           // unique in the page
  std::string title;        // for screen readers; the page prints its own heading
  std::string description;  // one sentence on what is to be seen
  PlotAxis x;
  PlotAxis y;
  std::vector<PlotSeries> series;  // bars of several series are stacked
  bool diagonal = false;           // the line y = x
  bool zero_line = false;          // the line y = 0
  double height = 340;             // of 640 wide
};

// An <svg> element. Points that are not finite are left out; a plot without any says so.
std::string RenderSvg(const Plot& plot);

// `text` with &, <, >, " and ' as entities.
std::string EscapeXml(absl::string_view text);

// Round numbers from at most `low` to at least `high`, about `count` steps.
struct Ticks {
  std::vector<double> values;
  int decimals = 0;
};
Ticks RoundTicks(double low, double high, int count, bool whole_numbers);

}  // namespace fedge

#endif  // FEDGE_TOOLS_REPORT_SVG_PLOT_H_
