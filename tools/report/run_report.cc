#include "tools/report/run_report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace fedge {
namespace {

using Json = nlohmann::ordered_json;

Json NumberJson(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

Json QualityJson(const QualityPoint& quality) {
  Json json;
  json["validation_loss"] = NumberJson(quality.validation_loss);
  json["perplexity"] = NumberJson(std::exp(quality.validation_loss));
  if (quality.label_accuracy) json["label_accuracy"] = NumberJson(*quality.label_accuracy);
  return json;
}

Json RoundToJson(const RoundRecord& record) {
  Json json;
  json["round"] = record.round;
  json["published"] = record.version > 0;
  json["version"] = record.version;
  json["assigned"] = record.assigned;
  json["accepted"] = record.accepted;
  json["rejected"] = record.rejected;
  json["dropped"] = record.dropped;
  json["train_loss"] = NumberJson(record.train_loss);
  if (record.quality) json.update(QualityJson(*record.quality));
  json["upload_bytes"] = record.upload_bytes;
  json["download_bytes"] = record.download_bytes;
  json["train_tokens"] = record.train_tokens;
  json["aggregation_error"] = NumberJson(record.aggregation_error);
  json["seconds"] = NumberJson(record.seconds);
  if (record.folded > 0) json["folded"] = record.folded;
  if (record.virtual_seconds > 0) json["virtual_seconds"] = NumberJson(record.virtual_seconds);
  if (!record.note.empty()) json["note"] = record.note;
  return json;
}

Json TrafficJson(const Traffic& traffic) {
  Json json;
  json["upload_bytes"] = traffic.upload_bytes;
  json["download_bytes"] = traffic.download_bytes;
  json["updates"] = traffic.updates;
  json["upload_bytes_per_node_and_round"] = NumberJson(traffic.upload_per_update);
  json["download_bytes_per_node_and_round"] = NumberJson(traffic.download_per_update);
  json["compression_against_fp32"] = NumberJson(traffic.compression);
  return json;
}

Json SectionsJson(const UpdateSections& sections) {
  Json json;
  json["bits_per_parameter"] = NumberJson(sections.bits_per_parameter);
  json["floor_bits_per_parameter"] = NumberJson(sections.floor_bits_per_parameter);
  json["header"] = NumberJson(sections.header);
  json["positions"] = NumberJson(sections.positions);
  json["scales"] = NumberJson(sections.scales);
  json["values"] = NumberJson(sections.values);
  json["a_share"] = NumberJson(sections.a_share);
  for (const auto& [kind, share] : sections.tensors) json["tensors"][kind] = NumberJson(share);
  return json;
}

Json SpreadJson(const Spread& spread) {
  Json json;
  json["nodes"] = spread.nodes;
  json["improved"] = spread.improved;
  json["loss_change_p10"] = NumberJson(spread.change_p10);
  json["loss_change_median"] = NumberJson(spread.change_median);
  json["loss_change_p90"] = NumberJson(spread.change_p90);
  json["perplexity_before_median"] = NumberJson(spread.perplexity_before_median);
  json["perplexity_after_median"] = NumberJson(spread.perplexity_after_median);
  return json;
}

Json NodeJson(const NodeResult& node) {
  Json json;
  json["node"] = node.node;
  json["train_records"] = node.train_records;
  json["validation_tokens"] = node.validation_tokens;
  json["loss_before"] = NumberJson(node.loss_before);
  json["loss_after"] = NumberJson(node.loss_after);
  json["rounds"] = node.rounds;
  return json;
}

// Linear between the two neighbours; `sorted` is not empty.
double Quantile(const std::vector<double>& sorted, double q) {
  const double place = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

Traffic TrafficOf(const RunReport& report) {
  Traffic traffic;
  for (const RoundRecord& round : report.rounds) {
    traffic.upload_bytes += round.upload_bytes;
    traffic.download_bytes += round.download_bytes;
    traffic.updates += round.accepted + round.rejected;
  }
  if (traffic.updates > 0) {
    const auto updates = static_cast<double>(traffic.updates);
    traffic.upload_per_update = static_cast<double>(traffic.upload_bytes) / updates;
    traffic.download_per_update = static_cast<double>(traffic.download_bytes) / updates;
    if (traffic.upload_bytes > 0) {
      traffic.compression =
          4.0 * static_cast<double>(report.adapter_parameters) / traffic.upload_per_update;
    }
  }
  return traffic;
}

Spread SpreadOf(const RunReport& report) {
  Spread spread;
  std::vector<double> change, before, after;
  for (const NodeResult& node : report.nodes) {
    if (node.validation_tokens == 0) continue;
    change.push_back(node.loss_after - node.loss_before);
    before.push_back(node.loss_before);
    after.push_back(node.loss_after);
    if (node.loss_after < node.loss_before) ++spread.improved;
  }
  spread.nodes = static_cast<int64_t>(change.size());
  if (change.empty()) return spread;
  for (std::vector<double>* values : {&change, &before, &after}) {
    std::sort(values->begin(), values->end());
  }
  spread.change_p10 = Quantile(change, 0.1);
  spread.change_median = Quantile(change, 0.5);
  spread.change_p90 = Quantile(change, 0.9);
  spread.perplexity_before_median = std::exp(Quantile(before, 0.5));
  spread.perplexity_after_median = std::exp(Quantile(after, 0.5));
  return spread;
}

std::string RoundJson(const RoundRecord& record) {
  return RoundToJson(record).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string ReportJson(const RunReport& report, int indent) {
  Json json;
  json["title"] = report.title;
  Json& settings = json["settings"] = Json::object();
  for (const auto& [name, value] : report.settings) settings[name] = value;
  json["before"] = QualityJson(report.before);
  json["after"] = QualityJson(report.after);
  if (report.label_count > 0) {
    json["labels"] = {{"labels", report.label_count},
                      {"questions", report.label_questions},
                      {"majority_accuracy", NumberJson(report.label_majority)}};
  }
  json["traffic"] = TrafficJson(TrafficOf(report));
  if (report.sections) json["update_sections"] = SectionsJson(*report.sections);
  json["spread"] = SpreadJson(SpreadOf(report));
  json["adapter_parameters"] = report.adapter_parameters;
  json["adapter_sha256"] = report.adapter_sha256;
  json["train_tokens"] = report.train_tokens;
  json["seconds"] = {{"federated", NumberJson(report.federated_seconds)},
                     {"centralized", NumberJson(report.centralized_seconds)},
                     {"total", NumberJson(report.total_seconds)}};
  Json& rounds = json["rounds"] = Json::array();
  for (const RoundRecord& round : report.rounds) rounds.push_back(RoundToJson(round));
  Json& centralized = json["centralized"] = Json::array();
  for (const CentralizedPoint& point : report.centralized) {
    Json entry;
    entry["round"] = point.round;
    entry.update(QualityJson(point.quality));
    centralized.push_back(std::move(entry));
  }
  Json& nodes = json["nodes"] = Json::array();
  for (const NodeResult& node : report.nodes) nodes.push_back(NodeJson(node));
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace fedge
