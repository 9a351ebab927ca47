#include "tools/fedge/prepare_output.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace fedge {
namespace {

double BitsOf(const TypeTotals& totals) {
  return 8.0 * static_cast<double>(totals.bytes) / static_cast<double>(totals.values);
}

}  // namespace

PrepareEvents ShowTensors(ProgressLine& line, const CommandContext& context) {
  return [&line, &context](const PrepareProgress& progress) {
    line.Update(absl::StrCat(progress.tensor + 1, "/", progress.tensors, "  ",
                             FormatBytes(static_cast<uint64_t>(progress.bytes_done)), " of ",
                             FormatBytes(static_cast<uint64_t>(progress.bytes)), "  ",
                             progress.name));
    return !context.interrupted();
  };
}

nlohmann::ordered_json TypesJson(const std::map<DType, TypeTotals>& types) {
  nlohmann::ordered_json result = nlohmann::ordered_json::object();
  for (const auto& [type, totals] : types) {
    nlohmann::ordered_json& row = result[std::string(DTypeName(type))];
    row["tensors"] = totals.tensors;
    row["values"] = totals.values;
    row["bytes"] = totals.bytes;
    row["bits"] = BitsOf(totals);
    row["rmse"] = totals.rmse();
    row["relative_rmse"] = totals.relative_rmse();
  }
  return result;
}

void PrintTypes(const std::map<DType, TypeTotals>& types, const CommandContext& context) {
  context.out() << absl::StrFormat("%-6s %8s %15s %10s %7s %11s %9s\n", "type", "tensors",
                                   "parameters", "size", "bits", "RMSE", "relative");
  for (const auto& [type, totals] : types) {
    context.out() << absl::StrFormat(
        "%-6s %8d %15s %10s %7.3f", DTypeName(type), totals.tensors, FormatCount(totals.values),
        FormatBytes(static_cast<uint64_t>(totals.bytes)), BitsOf(totals));
    if (totals.encoded_values > 0) {
      context.out() << absl::StrFormat(" %11.4e %8.3f%%", totals.rmse(),
                                       100 * totals.relative_rmse());
    } else {
      context.out() << absl::StrFormat(" %11s", "as it was");
    }
    context.out() << "\n";
  }
}

}  // namespace fedge
