#include "server/fleet_metrics.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <system_error>
#include <utility>

#include "fedge/v1/admin.pb.h"
#include "prometheus/metric_family.h"
#include "server/admin_runs.h"
#include "server/event_log.h"
#include "server/federation.h"

namespace fedge {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

constexpr double kMicros = 1e6;
// What alerts are about: a counter that begins with its first event has no increase to see.
constexpr const char* kCountedFromZero[] = {"abandoned", "damage", "refused", "update-accepted",
                                            "update-rejected"};

// The families in the order of their first value.
class Families {
 public:
  void Gauge(const char* name, const char* help, Labels labels, double value) {
    ClientMetric& metric = Add(name, help, MetricType::Gauge, std::move(labels));
    metric.gauge.value = value;
  }
  void Counter(const char* name, const char* help, Labels labels, double value) {
    ClientMetric& metric = Add(name, help, MetricType::Counter, std::move(labels));
    metric.counter.value = value;
  }
  std::vector<MetricFamily> Take() { return std::move(families_); }

 private:
  ClientMetric& Add(const char* name, const char* help, MetricType type, Labels labels) {
    const auto [place, added] = places_.emplace(name, families_.size());
    if (added) families_.push_back({name, help, type, {}});
    std::vector<ClientMetric>& metrics = families_[place->second].metric;
    metrics.emplace_back().label = std::move(labels);
    return metrics.back();
  }

  std::map<std::string, size_t> places_;
  std::vector<MetricFamily> families_;
};

const char* StateName(v1::RunState state) {
  switch (state) {
    case v1::RUN_RUNNING:
      return "running";
    case v1::RUN_PAUSED:
      return "paused";
    case v1::RUN_STOPPED:
      return "stopped";
    case v1::RUN_FINISHED:
      return "finished";
    default:
      return "unknown";
  }
}

void AddNewest(const v1::VersionInfo& newest, const Labels& run, Families& families) {
  families.Gauge("fedge_version_created_timestamp_seconds",
                 "When the newest version was published.", run,
                 static_cast<double>(newest.created_us()) / kMicros);
  families.Gauge("fedge_version_update_bytes", "Updates in the newest version, encoded.", run,
                 static_cast<double>(newest.update_bytes()));
  families.Gauge("fedge_version_download_bytes", "The newest version as one device gets it.", run,
                 static_cast<double>(newest.download_bytes()));
  const auto loss = [&](const char* where, double value) {
    Labels labels = run;
    labels.push_back({"where", where});
    families.Gauge("fedge_version_loss", "Nats a token: train, devices' held-out data, server's.",
                   labels, value);
  };
  if (newest.has_train_loss()) loss("train", newest.train_loss());
  if (newest.has_validation_loss()) loss("devices", newest.validation_loss());
  if (newest.has_holdout_loss()) loss("holdout", newest.holdout_loss());
}

void AddRound(const v1::RoundCountsProto& counts, const Labels& run, Families& families) {
  const std::pair<const char*, uint32_t> values[] = {
      {"pending", counts.pending()},   {"accepted", counts.accepted()},
      {"rejected", counts.rejected()}, {"dropped", counts.dropped()},
      {"late", counts.late()},
  };
  for (const auto& [outcome, value] : values) {
    Labels labels = run;
    labels.push_back({"outcome", outcome});
    families.Gauge("fedge_round_nodes", "Nodes of the open round by what became of them.", labels,
                   value);
  }
}

void AddRun(const v1::RunInfo& info, Families& families) {
  const Labels run = {{"run", info.run_id()}};
  Labels state = run;
  state.push_back({"state", StateName(info.state())});
  families.Gauge("fedge_run_state", "1 for the state the run is in.", state, 1);
  families.Gauge("fedge_run_problem", "1: the run cannot go on, `fedge run show` says why.", run,
                 info.problem().empty() ? 0 : 1);
  families.Gauge("fedge_run_created_timestamp_seconds", "When the run was created.", run,
                 static_cast<double>(info.created_us()) / kMicros);
  families.Gauge("fedge_run_version", "Newest version.", run, static_cast<double>(info.version()));
  families.Gauge("fedge_run_rounds", "Versions to publish in all.", run,
                 static_cast<double>(info.rounds()));
  families.Gauge("fedge_run_round", "Round that is open, or next; 0: none.", run,
                 static_cast<double>(info.round()));
  families.Gauge("fedge_run_known_nodes", "Nodes that checked in since the server's start.", run,
                 static_cast<double>(info.known_nodes()));
  if (info.collecting()) AddRound(info.counts(), run, families);
  if (info.version() > 0) AddNewest(info.newest(), run, families);
}

// Pages of memory that are resident, as bytes; 0 where /proc is not.
double ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  double size = 0, resident = 0;
  statm >> size >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

}  // namespace

std::vector<MetricFamily> FleetMetrics::Collect() const {
  Families families;
  absl::StatusOr<v1::RunListResponse> runs = RunList(context_, {});
  families.Gauge("fedge_healthy", "0: the store failed, nothing is acknowledged.", {},
                 runs.ok() && context_.federation->health().ok() ? 1 : 0);
  families.Gauge("process_resident_memory_bytes", "Of this process.", {}, ResidentBytes());
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(state_dir_, error);
  if (!error) {
    families.Gauge("fedge_state_free_bytes", "Free on the disk of the state folder.", {},
                   static_cast<double>(space.available));
  }
  std::map<std::pair<std::string, std::string>, uint64_t> events;  // by run and kind
  if (runs.ok()) {
    for (const v1::RunInfo& run : runs->runs()) {
      for (const char* const kind : kCountedFromZero) events[{run.run_id(), kind}] = 0;
    }
  }
  for (const EventCount& count : context_.events->Counts()) {
    events[{count.run_id, count.kind}] = count.count;
  }
  for (const auto& [key, count] : events) {
    families.Counter("fedge_events_total", "Events since the start, as `fedge logs` shows them.",
                     {{"run", key.first}, {"kind", key.second}}, static_cast<double>(count));
  }
  if (runs.ok()) {
    for (const v1::RunInfo& run : runs->runs()) AddRun(run, families);
  }
  return families.Take();
}

}  // namespace fedge
