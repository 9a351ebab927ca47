#include "client/daemon.h"

#include <unistd.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/participant_state.h"
#include "client/server_link.h"
#include "common/base/clock.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/formats/adapter_files.h"
#include "common/model/chat_template.h"
#include "common/tensor/matmul.h"

namespace fedge {
namespace {

constexpr absl::Duration kPauseWhileUnreachable = absl::Seconds(10);
constexpr absl::Duration kStopCheckInterval = absl::Milliseconds(200);

uint64_t PhysicalMemoryBytes() {
  const int64_t pages = sysconf(_SC_PHYS_PAGES);
  const int64_t page_bytes = sysconf(_SC_PAGE_SIZE);
  return pages > 0 && page_bytes > 0 ? static_cast<uint64_t>(pages * page_bytes) : 0;
}

// A pause that ends early when the daemon is told to stop.
void Pause(absl::Duration pause, const std::function<bool()>& stopping, Clock& clock) {
  const absl::Duration end = clock.Monotonic() + pause;
  while (!(stopping && stopping())) {
    const absl::Duration left = end - clock.Monotonic();
    if (left <= absl::ZeroDuration()) return;
    clock.Sleep(std::min(left, kStopCheckInterval));
  }
}

void LogOutcome(const StepOutcome& outcome) {
  for (const std::string& warning : outcome.warnings) LogWarning(warning);
  const v1::TaskMetrics& metrics = outcome.metrics;
  switch (outcome.kind) {
    case StepKind::kWaiting:
      LogInfo(outcome.detail.empty() ? "no task now" : outcome.detail, "; asking again in ",
              absl::FormatDuration(absl::Trunc(outcome.pause, absl::Milliseconds(100))));
      return;
    case StepKind::kAccepted:
      LogInfo(
          absl::StrFormat("round %d: update accepted; loss %.4f -> %.4f nats/token over %d tokens, "
                          "validation %.4f before, %d bytes up, %d down",
                          outcome.round, metrics.train_loss_first(), metrics.train_loss_last(),
                          metrics.train_tokens(), metrics.validation_loss_before(),
                          metrics.upload_bytes(), metrics.download_bytes()));
      return;
    case StepKind::kRejected:
    case StepKind::kLate:
    case StepKind::kFailed:
      LogWarning("round ", outcome.round, ": ",
                 outcome.kind == StepKind::kFailed ? "task " : "update ",
                 StepKindName(outcome.kind), ": ", outcome.detail);
      return;
    case StepKind::kFinished:
      LogInfo("the run is finished");
      return;
  }
}

// Refusing to start beats failing after hours of training.
absl::Status CheckWritable(const std::string& dir, Env& env) {
  RETURN_IF_ERROR(env.CreateDirs(dir));
  const std::string probe = JoinPath(dir, ".fedge-write-check");
  RETURN_IF_ERROR(env.WriteFileAtomic(probe, ""));
  return env.Remove(probe);
}

absl::StatusOr<std::vector<Record>> ReadLocalRecords(const DaemonOptions& options,
                                                     const BaseModel& base, Env& env) {
  ASSIGN_OR_RETURN(const ChatFormat format,
                   RecognizeChatTemplate(base.tokenizer().chat_template()));
  ASSIGN_OR_RETURN(std::vector<Record> records,
                   ReadRecords(options.data, format, DatasetLimits(), env));
  if (records.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.data, ": no records; --data takes a JSONL or text file, or a folder of them"));
  }
  return records;
}

}  // namespace

absl::Status WriteAdapterBothWays(const LoraAdapter& adapter, const BaseModel& base,
                                  const std::string& base_name, const std::string& dir, Env& env) {
  AdapterInfo info;
  info.base_model = base_name;
  info.base_model_sha256 = base.sha256().Hex();
  info.num_heads = base.config().head_count;
  info.num_kv_heads = base.config().head_count_kv;
  RETURN_IF_ERROR(env.CreateDirs(dir));
  RETURN_IF_ERROR(WriteAdapterGguf(adapter, info, JoinPath(dir, "adapter.gguf"), env));
  return WriteAdapterPeft(adapter, info, JoinPath(dir, "peft"), env);
}

absl::Status RunSteps(const DaemonOptions& options, Participant& participant,
                      Transformer& transformer, Clock& clock, bool* finished) {
  const auto stopping = [&] { return options.stopping && options.stopping(); };
  const absl::Duration patience = absl::Seconds(options.patience_seconds);
  bool reached = false;  // the server answered at least once
  absl::Duration last_answer = clock.Monotonic();
  *finished = false;
  while (!stopping()) {
    const absl::StatusOr<StepOutcome> outcome = participant.RunOnce(transformer);
    if (absl::IsCancelled(outcome.status())) break;
    if (!outcome.ok()) {
      const bool waiting_helps = IsRetryable(outcome.status()) && reached && !options.once &&
                                 clock.Monotonic() - last_answer < patience;
      if (!waiting_helps) return outcome.status();
      LogWarning(outcome.status().message(), "; still trying");
      Pause(kPauseWhileUnreachable, options.stopping, clock);
      continue;
    }
    reached = true;
    last_answer = clock.Monotonic();
    LogOutcome(*outcome);
    *finished = outcome->kind == StepKind::kFinished;
    if (*finished || options.once) return absl::OkStatus();
    Pause(outcome->pause, options.stopping, clock);
    last_answer = clock.Monotonic();
  }
  LogInfo("stopped");
  return absl::OkStatus();
}

absl::Status RunDaemon(const DaemonOptions& options, Env& env) {
  RETURN_IF_ERROR(CheckWritable(options.state_dir, env));
  const std::string out_dir = options.out_dir.empty() ? options.state_dir : options.out_dir;
  RETURN_IF_ERROR(CheckWritable(out_dir, env));
  ServerLinkOptions link_options;
  link_options.server = options.server;
  link_options.state_dir = options.state_dir;
  link_options.node_id = options.node_id;
  link_options.insecure = options.insecure;
  ASSIGN_OR_RETURN(const ServerLink server, OpenServerLink(link_options, env, *Clock::Real()));
  ASSIGN_OR_RETURN(const std::shared_ptr<const BaseModel> base,
                   BaseModel::Load(options.model, env));
  ASSIGN_OR_RETURN(std::vector<Record> records, ReadLocalRecords(options, *base, env));
  LogInfo("node \"", server.node_id, "\": ", records.size(), " local records, base model ",
          base->sha256().Hex().substr(0, 12), ", server ", server.server);

  ThreadPool pool(options.threads > 0 ? options.threads : ThreadPool::AvailableProcessors());
  Transformer transformer(base, &pool);
  DirectoryStateStore state(JoinPath(options.state_dir, "nodes"), &env);
  DirectoryStateStore adapters(JoinPath(options.state_dir, "nodes"), &env, ".adapter");
  ParticipantOptions participant_options;
  participant_options.node_id = server.node_id;
  participant_options.seed = StableHash(server.node_id);
  participant_options.device.set_client_version(FEDGE_VERSION);
  participant_options.device.set_simd_target(SimdTargetName());
  participant_options.device.set_threads(static_cast<uint32_t>(pool.threads()));
  participant_options.device.set_memory_bytes(PhysicalMemoryBytes());
  ParticipantParts parts;
  parts.base = base;
  parts.records = std::move(records);
  parts.link = server.link.get();
  parts.state = &state;
  parts.adapters = &adapters;
  parts.clock = Clock::Real();
  parts.stopping = options.stopping;
  Participant participant(std::move(participant_options), std::move(parts));

  bool finished = false;
  RETURN_IF_ERROR(RunSteps(options, participant, transformer, *Clock::Real(), &finished));
  if (!finished) return absl::OkStatus();
  ASSIGN_OR_RETURN(const LoraAdapter adapter, participant.FetchFinalAdapter());
  RETURN_IF_ERROR(
      WriteAdapterBothWays(adapter, *base, std::string(BaseName(options.model)), out_dir, env));
  LogInfo("final adapter: ", JoinPath(out_dir, "adapter.gguf"), " and ", JoinPath(out_dir, "peft"));
  return absl::OkStatus();
}

}  // namespace fedge
