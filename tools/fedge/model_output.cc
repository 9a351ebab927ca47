#include "tools/fedge/model_output.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tools/fedge/proto_json.h"
#include "tools/fedge/table.h"
#include "tools/report/progress.h"

namespace fedge {
namespace {

std::string LossText(bool has, double loss) { return has ? absl::StrFormat("%.4f", loss) : "-"; }

std::string MeanText(const v1::HeldOutLoss& loss) {
  if (loss.tokens() == 0) return "-";
  return absl::StrFormat("%.4f", loss.nats() / static_cast<double>(loss.tokens()));
}

// What made it, in a few words.
std::string MadeBy(const v1::ModelInfo& model) {
  if (model.has_origin()) return absl::StrCat("version ", model.origin(), " again");
  if (model.round() == 0) return "start";
  return absl::StrCat("round ", model.round(), ", ", model.updates(), " updates");
}

void AddLosses(const v1::LossComparison& losses, Table& table) {
  table.Add({losses.slice().empty() ? "all" : losses.slice(),
             absl::StrCat(losses.candidate().tokens()), MeanText(losses.base()),
             MeanText(losses.current()), MeanText(losses.candidate())});
}

void PrintGate(const v1::GateDecision& gate, std::ostream& out) {
  out << "gate        " << gate.reason();
  if (!gate.approved_by().empty()) out << " (by " << gate.approved_by() << ")";
  out << "\n";
  if (gate.has_nodes()) {
    out << absl::StrFormat(
        "nodes       %d of %d reported, loss %+.4f in the mean, %+.4f for the "
        "worst tenth\n",
        gate.nodes().reported(), gate.nodes().asked(), gate.nodes().mean_change(),
        gate.nodes().worst_decile_change());
  }
  if (!gate.has_holdout()) return;
  Table table({"HOLDOUT", "TOKENS", "BASE", "BEFORE", "THIS"});
  AddLosses(gate.holdout(), table);
  for (const v1::LossComparison& slice : gate.slices()) AddLosses(slice, table);
  out << "\n";
  table.Print(out);
}

}  // namespace

void PrintModels(const v1::ModelListResponse& models, std::ostream& out) {
  Table table(
      {"VERSION", "PUBLISHED", "MADE BY", "HOLDOUT", "TRAIN", "UPDATES", "DOWNLOAD", "MANIFEST"});
  for (const v1::ModelInfo& model : models.versions()) {
    table.Add({absl::StrCat(model.version(), model.served() ? " *" : ""),
               TimeText(model.created_us()), MadeBy(model),
               LossText(model.has_holdout_loss(), model.holdout_loss()),
               LossText(model.has_train_loss(), model.train_loss()),
               FormatBytes(model.update_bytes()), FormatBytes(model.download_bytes()),
               absl::BytesToHexString(model.manifest_sha256().substr(0, 6))});
  }
  table.Print(out);
  out << "* served\n" << std::flush;
}

void PrintModel(const v1::ModelInfo& model, std::ostream& out) {
  out << "version     " << model.version() << (model.served() ? ", served" : "") << "\n"
      << "made by     " << MadeBy(model) << "\n"
      << "published   " << TimeText(model.created_us()) << "\n"
      << "manifest    " << absl::BytesToHexString(model.manifest_sha256())
      << (model.is_signed() ? ", signed" : ", not signed") << "\n"
      << "parent      " << absl::BytesToHexString(model.manifest().parent_sha256()) << "\n"
      << "values      " << absl::BytesToHexString(model.manifest().values_sha256()) << "\n"
      << "train loss  " << LossText(model.has_train_loss(), model.train_loss()) << "\n"
      << "holdout     " << LossText(model.has_holdout_loss(), model.holdout_loss()) << "\n";
  if (model.has_gate()) PrintGate(model.gate(), out);
  if (model.contributions_size() > 0) {
    Table table({"NODE", "WEIGHT", "BYTES", "UPDATE"});
    for (const v1::ContributionInfo& part : model.contributions()) {
      table.Add({part.node_id(), absl::StrCat(part.weight()), FormatBytes(part.update_bytes()),
                 absl::BytesToHexString(part.update_sha256().substr(0, 6))});
    }
    out << "\n";
    table.Print(out);
  }
  out << std::flush;
}

void PrintDiff(const v1::ModelInfo& before, const v1::ModelInfo& after,
               const std::vector<ModuleChange>& changes, std::ostream& out) {
  Table metrics(
      {"", absl::StrCat("VERSION ", before.version()), absl::StrCat("VERSION ", after.version())});
  metrics.Add({"made by", MadeBy(before), MadeBy(after)});
  metrics.Add({"holdout loss", LossText(before.has_holdout_loss(), before.holdout_loss()),
               LossText(after.has_holdout_loss(), after.holdout_loss())});
  metrics.Add({"train loss", LossText(before.has_train_loss(), before.train_loss()),
               LossText(after.has_train_loss(), after.train_loss())});
  metrics.Add({"updates", absl::StrCat(before.updates()), absl::StrCat(after.updates())});
  metrics.Print(out);
  Table table({"MODULE", "CHANGE OF A", "OF B", "OF THE PRODUCT", "IN PARTS OF IT"});
  for (const ModuleChange& change : changes) {
    table.Add({change.tensor, absl::StrFormat("%.4g", change.a), absl::StrFormat("%.4g", change.b),
               absl::StrFormat("%.4g", change.product),
               change.before > 0 ? absl::StrFormat("%.1f%%", 100 * change.product / change.before)
                                 : "-"});
  }
  out << "\n";
  table.Print(out);
  out << std::flush;
}

nlohmann::ordered_json DiffJson(const v1::ModelInfo& before, const v1::ModelInfo& after,
                                const std::vector<ModuleChange>& changes) {
  nlohmann::ordered_json json;
  json["from"] = ProtoJson(before);
  json["to"] = ProtoJson(after);
  json["modules"] = nlohmann::ordered_json::array();
  for (const ModuleChange& change : changes) {
    json["modules"].push_back({{"tensor", change.tensor},
                               {"a", change.a},
                               {"b", change.b},
                               {"product", change.product},
                               {"product_before", change.before}});
  }
  return json;
}

std::string AuditLine(const v1::AuditRecordProto& record) {
  return absl::StrCat(record.number(), "  ", TimeText(record.when_us()), "  ",
                      record.run_id().empty() ? "-" : record.run_id(), "  ", record.actor(), "  ",
                      record.action(), "  ", record.detail());
}

}  // namespace fedge
