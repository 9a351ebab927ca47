// Quality for bytes: what a way of compressing costs until it has done what the uncompressed run
// does. Every number comes from the simulator, which is the product's server and clients.
#ifndef FEDGE_TESTS_QUALITY_STUDY_H_
#define FEDGE_TESTS_QUALITY_STUDY_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tools/report/run_report.h"

namespace fedge {

// A way to run: changes to the reference's run configuration, as YAML.
struct StudyMethod {
  std::string name;
  std::string yaml;
  std::string family;  // what it is one setting of: a line in the plot of the frontier
};

// One run, round by round; entry 0 is before the first round. Bytes are sums over nodes and rounds.
struct LossCurve {
  std::vector<double> loss;  // held-out, nats a token
  std::vector<uint64_t> up, down;

  int64_t rounds() const { return static_cast<int64_t>(loss.size()) - 1; }
};

// Of a finished run. `fp32_values`: when not 0, every update and every download is counted as that
// many fp32 values (what a system without compression sends), whatever was sent here.
LossCurve CurveOf(const RunReport& report, int64_t fp32_values);

// Shares of the reference's improvement at which bytes are read off.
inline constexpr std::array<double, 3> kTargets = {0.50, 0.80, 0.95};

struct BytesAtTarget {
  uint64_t up = 0, down = 0;
  int64_t round = 0;
};

struct StudyRow {
  std::string method;
  uint64_t seed = 0;
  std::string dataset;
  int64_t nodes = 0;
  int64_t rounds = 0;
  std::array<std::optional<BytesAtTarget>, kTargets.size()> at;  // empty: not reached
  double final_loss = 0;
  double final_gap = 0;  // to the reference's final loss, in its improvement; negative is better
};

// Share of the reference's improvement that a loss is short of its final one; negative: better.
double GapOf(double loss, const LossCurve& reference);

// Bytes until the loss is first at most start - target * (start - final) of `reference`.
StudyRow Compare(const LossCurve& curve, const LossCurve& reference);

inline constexpr absl::string_view kStudyHeader =
    "method,seed,dataset,nodes,rounds,up_50,down_50,up_80,down_80,up_95,down_95,final_loss,"
    "final_gap";
std::string CsvLine(const StudyRow& row);
// InvalidArgument names the line.
absl::StatusOr<std::vector<StudyRow>> ParseStudy(absl::string_view csv);

// Middle value; the mean of the two middle ones for an even number.
double Median(std::vector<double> values);

}  // namespace fedge

#endif  // FEDGE_TESTS_QUALITY_STUDY_H_
