#include "tools/fedge/command_context.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"

namespace fedge {
namespace {

using Json = nlohmann::ordered_json;

std::string ValueText(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) return absl::StrFormat("%.6g", value.get<double>());
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

void CommandContext::AddCommand(CLI::App* command, std::function<absl::Status()> run) {
  commands_.emplace_back(command, std::move(run));
}

absl::Status CommandContext::RunParsed() const {
  for (const auto& [command, run] : commands_) {
    if (command->parsed()) return run();
  }
  return absl::InvalidArgumentError("no command given; see fedge --help");
}

void CommandContext::PrintJson(const Json& value) const {
  out() << value.dump(2, ' ', false, Json::error_handler_t::replace) << std::endl;
}

void CommandContext::PrintSummary(const Json& summary, OutputFormat format) const {
  if (format == OutputFormat::kJson) {
    PrintJson(summary);
    return;
  }
  size_t width = 0;
  for (const auto& [name, value] : summary.items()) width = std::max(width, name.size());
  for (const auto& [name, value] : summary.items()) {
    const std::string label = absl::StrReplaceAll(name, {{"_", " "}});
    out() << label << std::string(width - label.size() + 2, ' ') << ValueText(value) << "\n";
  }
  out() << std::flush;
}

void AddFormatOption(CLI::App* command, OutputFormat& format) {
  static const std::map<std::string, OutputFormat> kFormats = {{"text", OutputFormat::kText},
                                                               {"json", OutputFormat::kJson}};
  command
      ->add_option_function<std::string>(
          "--format", [&format](const std::string& name) { format = kFormats.at(name); },
          "How results are printed: text or json")
      ->check(CLI::IsMember(std::vector<std::string>{"text", "json"}))
      ->type_name("FORMAT");
}

void AddThreadsOption(CLI::App* command, int& threads) {
  threads = ThreadPool::AvailableProcessors();
  command->add_option("--threads", threads, "Processor threads (default: all)")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
}

void AddPrecisionOption(CLI::App* command, const std::string& help, Precision& precision) {
  static const std::map<std::string, Precision> kPrecisions = {{"fp32", Precision::kFloat32},
                                                               {"bf16", Precision::kBFloat16}};
  const char* const usual = precision == Precision::kBFloat16 ? "bf16" : "fp32";
  command
      ->add_option_function<std::string>(
          "--precision",
          [&precision](const std::string& name) { precision = kPrecisions.at(name); },
          help + ": fp32 or bf16 (default " + usual + ")")
      ->check(CLI::IsMember(std::vector<std::string>{"fp32", "bf16"}))
      ->type_name("P");
}

absl::Status CheckOutputDir(absl::string_view dir, Env& env) {
  RETURN_IF_ERROR(env.CreateDirs(dir));
  const std::string probe = JoinPath(dir, ".fedge-writable");
  RETURN_IF_ERROR(env.WriteFileAtomic(probe, ""));
  return env.Remove(probe);
}

}  // namespace fedge
