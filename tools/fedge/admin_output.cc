#include "tools/fedge/admin_output.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/config/config_file.h"
#include "tools/fedge/proto_json.h"
#include "tools/fedge/table.h"
#include "tools/report/progress.h"

namespace fedge {
namespace {

std::string StateText(const v1::RunInfo& run) {
  return EnumText(*v1::RunState_descriptor()->FindValueByNumber(run.state()));
}

std::string CountsText(const v1::RoundCountsProto& counts) {
  std::string text = absl::StrCat(counts.accepted(), " of ", counts.assigned(), " accepted");
  if (counts.pending() > 0) absl::StrAppend(&text, ", ", counts.pending(), " pending");
  if (counts.rejected() > 0) absl::StrAppend(&text, ", ", counts.rejected(), " rejected");
  if (counts.dropped() > 0) absl::StrAppend(&text, ", ", counts.dropped(), " dropped");
  if (counts.late() > 0) absl::StrAppend(&text, ", ", counts.late(), " late");
  return text;
}

std::string LossText(bool known, double loss) {
  return known ? absl::StrFormat("%.4f", loss) : "-";
}

std::string RoundText(const v1::RunInfo& run) {
  if (run.round() == 0) return "-";
  if (!run.collecting()) return absl::StrCat(run.round(), " (waiting)");
  return absl::StrCat(run.round(), " (", run.counts().accepted(), "/", run.counts().assigned(),
                      ")");
}

}  // namespace

void PrintRuns(const v1::RunListResponse& runs, std::ostream& out) {
  Table table({"RUN", "STATE", "VERSION", "ROUND", "NODES", "HOLDOUT", "BASE MODEL", "CREATED"});
  for (const v1::RunInfo& run : runs.runs()) {
    table.Add({run.run_id(), run.problem().empty() ? StateText(run) : StateText(run) + " (!)",
               absl::StrCat(run.version(), "/", run.rounds()), RoundText(run),
               absl::StrCat(run.known_nodes()),
               LossText(run.newest().has_holdout_loss(), run.newest().holdout_loss()),
               run.base_model(), TimeText(run.created_us())});
  }
  table.Print(out);
  for (const v1::RunInfo& run : runs.runs()) {
    if (!run.problem().empty())
      out << "(!) run '" << run.run_id() << "': " << run.problem() << "\n";
  }
  out << std::flush;
}

void PrintRun(const v1::RunShowResponse& response, std::ostream& out) {
  const v1::RunInfo& run = response.run();
  out << RunLine(run) << "\n";
  if (!run.problem().empty()) out << "problem     " << run.problem() << "\n";
  out << "base model  " << run.base_model() << "\n"
      << "            " << absl::BytesToHexString(run.base_model_sha256()) << "\n"
      << "created     " << TimeText(run.created_us()) << "\n"
      << "nodes       " << run.known_nodes() << " have checked in\n";
  if (!run.parent_run().empty()) {
    out << "cloned from run '" << run.parent_run() << "'";
    if (run.has_parent_version()) out << ", version " << run.parent_version();
    out << "\n";
  }
  if (response.versions_size() > 0) {
    out << "\n";
    Table table({"VERSION", "ROUND", "ACCEPTED", "UPDATES", "DOWNLOAD", "TRAIN LOSS", "HOLDOUT",
                 "PUBLISHED"});
    for (const v1::VersionInfo& version : response.versions()) {
      table.Add({absl::StrCat(version.version()), absl::StrCat(version.round()),
                 absl::StrCat(version.counts().accepted(), "/", version.counts().assigned()),
                 FormatBytes(version.update_bytes()), FormatBytes(version.download_bytes()),
                 LossText(version.has_train_loss(), version.train_loss()),
                 LossText(version.has_holdout_loss(), version.holdout_loss()),
                 TimeText(version.created_us())});
    }
    table.Print(out);
  }
  out << "\n" << PrintConfig(response.file()) << std::flush;
}

std::string RunLine(const v1::RunInfo& run) {
  std::string line = absl::StrCat("run '", run.run_id(), "' ", StateText(run), ", version ",
                                  run.version(), " of ", run.rounds());
  if (run.round() > 0) {
    absl::StrAppend(&line, ", round ", run.round(), ": ",
                    run.collecting() ? CountsText(run.counts()) : "waiting for nodes");
  }
  if (run.newest().has_holdout_loss()) {
    absl::StrAppendFormat(&line, ", holdout loss %.4f", run.newest().holdout_loss());
  }
  return line;
}

std::string VersionLine(const v1::VersionInfo& version) {
  std::string line = absl::StrCat("version ", version.version());
  if (version.round() > 0) {
    absl::StrAppend(&line, ": round ", version.round(), ", ", CountsText(version.counts()), ", ",
                    FormatBytes(version.update_bytes()), " of updates");
  }
  if (version.has_train_loss()) {
    absl::StrAppendFormat(&line, ", train loss %.4f", version.train_loss());
  }
  if (version.has_holdout_loss()) {
    absl::StrAppendFormat(&line, ", holdout loss %.4f", version.holdout_loss());
  }
  return line;
}

void PrintNodes(const v1::NodeListResponse& nodes, std::ostream& out) {
  Table table({"NODE", "LAST SEEN", "ACCEPTED", "REJECTED", "LATE", "FAILED", "TOKENS/S", "MEMORY",
               "EXAMPLES", "NOTE"});
  for (const v1::NodeInfo& node : nodes.nodes()) {
    const v1::DeviceReport& device = node.device();
    table.Add(
        {node.node_id(), TimeText(node.last_seen_us()), absl::StrCat(node.accepted()),
         absl::StrCat(node.rejected()), absl::StrCat(node.late()), absl::StrCat(node.failed()),
         device.tokens_per_second() > 0 ? absl::StrFormat("%.0f", device.tokens_per_second()) : "-",
         device.memory_bytes() > 0 ? FormatBytes(device.memory_bytes()) : "-",
         device.num_examples() > 0 ? absl::StrCat(device.num_examples()) : "-",
         node.quarantined()});
  }
  table.Print(out);
  const uint64_t shown = static_cast<uint64_t>(nodes.nodes_size());
  if (shown < nodes.total()) {
    out << shown << " of " << nodes.total() << " nodes; the next with --after '"
        << (shown == 0 ? "" : nodes.nodes(nodes.nodes_size() - 1).node_id()) << "'\n";
  }
  out << std::flush;
}

void PrintNode(const v1::NodeShowResponse& response, std::ostream& out) {
  const v1::NodeInfo& node = response.node();
  const v1::DeviceReport& device = node.device();
  out << "node        " << node.node_id() << "\n"
      << "first seen  " << TimeText(node.first_seen_us()) << "\n"
      << "last seen   " << TimeText(node.last_seen_us()) << "\n"
      << "device      version " << (device.client_version().empty() ? "-" : device.client_version())
      << ", " << device.threads() << " threads (" << device.simd_target() << "), "
      << FormatBytes(device.memory_bytes()) << " of memory, "
      << absl::StrFormat("%.1f", device.tokens_per_second()) << " tokens/s\n"
      << "examples    " << device.num_examples() << "\n"
      << "updates     " << node.accepted() << " accepted (" << FormatBytes(node.update_bytes())
      << "), " << node.rejected() << " rejected, " << node.late() << " late, " << node.failed()
      << " failed\n";
  if (!node.quarantined().empty()) out << "quarantine  " << node.quarantined() << "\n";
  if (response.tasks_size() > 0) {
    out << "\n";
    Table table({"WHEN", "RUN", "ROUND", "OUTCOME", "WEIGHT", "BYTES", "LOSS", "REASON"});
    for (const v1::NodeTask& task : response.tasks()) {
      const v1::TaskMetrics& metrics = task.metrics();
      table.Add({TimeText(task.when_us()), task.run_id(), absl::StrCat(task.round()),
                 task.outcome(), absl::StrCat(task.weight()), FormatBytes(task.update_bytes()),
                 metrics.train_tokens() > 0
                     ? absl::StrFormat("%.4f -> %.4f", metrics.train_loss_first(),
                                       metrics.train_loss_last())
                     : "-",
                 task.reason()});
    }
    table.Print(out);
  }
  out << std::flush;
}

std::string EventLine(const v1::Event& event) {
  const std::string level =
      EnumText(*v1::Event::Level_descriptor()->FindValueByNumber(event.level()));
  return absl::StrCat(TimeText(event.time_us()), "  ", absl::StrFormat("%-7s", level), "  ",
                      event.run_id().empty() ? "-" : event.run_id(), "  ", event.text());
}

}  // namespace fedge
