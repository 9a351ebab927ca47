// What is known of a run when it is over, as numbers: the one source of the closing table,
// summary.json and report.html.
#ifndef FEDGE_TOOLS_REPORT_RUN_REPORT_H_
#define FEDGE_TOOLS_REPORT_RUN_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace fedge {

// Quality of one adapter version on the run's fixed held-out samples.
struct QualityPoint {
  double validation_loss = 0;            // nats/token
  std::optional<double> label_accuracy;  // of the labelled questions; empty: not measured
};

struct RoundRecord {
  uint64_t round = 0;    // as the server counts them
  uint64_t version = 0;  // published by it; 0: abandoned
  int64_t assigned = 0;
  int64_t accepted = 0;
  int64_t rejected = 0;
  int64_t dropped = 0;
  double train_loss = 0;  // mean of the accepted nodes' last losses, weighted by examples
  std::optional<QualityPoint> quality;
  uint64_t upload_bytes = 0;    // of all nodes
  uint64_t download_bytes = 0;  // of all nodes
  uint64_t train_tokens = 0;
  double aggregation_error = 0;  // mean of products against the version's product, relative
  double seconds = 0;            // wall time, evaluation included
  int64_t folded = 0;            // accepted updates of earlier rounds
  double virtual_seconds = 0;    // since the start, when the round ended; 0: time was not simulated
  std::string note;              // why it was abandoned
};

// The reference: the same number of steps on the pooled data.
struct CentralizedPoint {
  double round = 0;  // as many steps as the federation had done after this round
  QualityPoint quality;
};

struct NodeResult {
  std::string node;
  uint64_t train_records = 0;
  uint64_t validation_tokens = 0;
  double loss_before = 0;  // nats/token on its own held-out data
  double loss_after = 0;
  int64_t rounds = 0;  // it was in with an accepted update
};

// Where the bytes of the updates went. Shares are of all updates together.
struct UpdateSections {
  double header = 0;
  double positions = 0;
  double scales = 0;
  double values = 0;
  double bits_per_parameter = 0;
  double floor_bits_per_parameter = 0;                  // UpdateAnatomy::floor_bits
  double a_share = 0;                                   // of the values sent; the others are B's
  std::vector<std::pair<std::string, double>> tensors;  // by kind ("attn_q"), the largest first
};

struct RunReport {
  std::string title;
  std::vector<std::pair<std::string, std::string>> settings;  // in the order they are shown
  QualityPoint before;
  QualityPoint after;
  std::vector<RoundRecord> rounds;
  std::vector<CentralizedPoint> centralized;  // empty: not run
  std::vector<NodeResult> nodes;
  int64_t label_count = 0;      // of the labelled task; 0: none
  int64_t label_questions = 0;  // asked each time
  double label_majority = 0;    // accuracy of always saying the most frequent label
  int64_t adapter_parameters = 0;
  std::optional<UpdateSections> sections;  // empty: nothing was sent
  uint64_t train_tokens = 0;
  double federated_seconds = 0;
  double centralized_seconds = 0;
  double total_seconds = 0;
  std::string adapter_sha256;  // hex of adapter.gguf; the same seed gives the same
};

struct Traffic {
  uint64_t upload_bytes = 0;
  uint64_t download_bytes = 0;
  int64_t updates = 0;  // sent: accepted and rejected ones
  double upload_per_update = 0;
  double download_per_update = 0;
  double compression = 0;  // fp32 bytes of an update over what was sent; 0: nothing was sent
};
Traffic TrafficOf(const RunReport& report);

struct Spread {
  int64_t nodes = 0;      // with held-out data
  int64_t improved = 0;   // of those
  double change_p10 = 0;  // of loss_after - loss_before, nats/token; negative is better
  double change_median = 0;
  double change_p90 = 0;
  double perplexity_before_median = 0;
  double perplexity_after_median = 0;
};
Spread SpreadOf(const RunReport& report);

// All of it as JSON text (an object), numbers only where they are finite.
std::string ReportJson(const RunReport& report, int indent);
// One line of metrics.jsonl, without the line's end.
std::string RoundJson(const RoundRecord& record);

}  // namespace fedge

#endif  // FEDGE_TOOLS_REPORT_RUN_REPORT_H_
