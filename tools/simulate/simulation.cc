#include "tools/simulate/simulation.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/model/chat_template.h"
#include "common/training/adapter_init.h"
#include "server/run_plan.h"
#include "server/task_plan.h"
#include "tools/simulate/centralized.h"
#include "tools/simulate/fleet.h"
#include "tools/simulate/held_out.h"
#include "tools/simulate/live_view.h"
#include "tools/simulate/output_files.h"
#include "tools/simulate/simulated_server.h"
#include "tools/simulate/update_watch.h"
#include "tools/simulate/worker_pool.h"

namespace fedge {
namespace {

constexpr int64_t kMaxAbandonedInARow = 10;
// Texts up to this size are tokenized once and kept; beyond it each task tokenizes its node's anew.
constexpr uint64_t kMaxKeptTextBytes = uint64_t{64} << 20;
// The server answers within milliseconds; this long without a word is a bug, not a slow machine.
constexpr absl::Duration kEventTimeout = absl::Minutes(5);

class Simulation {
 public:
  Simulation(const SimulationOptions& options, const SimulationEnvironment& environment)
      : options_(options), environment_(environment) {}

  absl::StatusOr<RunReport> Run();

 private:
  absl::Status Prepare();
  absl::Status LoadData();
  absl::Status MeasureStart();
  absl::Status StartServer();
  absl::Status RunRounds();
  absl::StatusOr<bool> RunRound(const RoundStarted& started);
  // The same in virtual time: one node acts after the other.
  absl::Status RunTimeline();
  absl::Status Act(size_t node);
  absl::StatusOr<bool> DrainEvents();  // whether the run is over
  absl::Status EndRound(const RoundCounts& counts, RoundRecord record);
  absl::Status Measure(RoundRecord& record);
  void MeasureCandidate(const CandidateWaits& waits);
  std::vector<NodeOutcome> RunCohort(const std::vector<std::string>& cohort);
  void SumUp(const std::vector<NodeOutcome>& outcomes, RoundRecord* record);
  absl::Status FinishRound(RoundRecord record);
  absl::StatusOr<SimulationEvent> NextEvent();
  float CentralizedLearningRate() const;
  absl::Status RunCentralized();
  absl::Status Conclude();
  void FillSettings();

  bool interrupted() const { return environment_.interrupted && environment_.interrupted(); }
  double Seconds() const { return absl::ToDoubleSeconds(environment_.wall->Monotonic()); }

  const SimulationOptions options_;
  const SimulationEnvironment environment_;
  RunReport report_;
  std::unique_ptr<OutputFiles> files_;
  std::unique_ptr<LiveView> view_;
  std::unique_ptr<WorkerPool> pool_;
  NodeData data_;
  RunPlan plan_;
  HeldOutOptions held_out_options_;
  std::optional<HeldOut> held_out_;
  std::vector<Example> pooled_;         // of the centralised reference
  ManualClock clock_;                   // the federation's
  std::optional<Adversary> adversary_;  // outlives the fleet's links
  std::optional<AnatomySum> anatomy_;   // so does this
  std::unique_ptr<SimulatedServer> server_;
  std::unique_ptr<Fleet> fleet_;
  LoraAdapter initial_;  // version 0
  LoraAdapter current_;
  std::optional<Measurement> base_measured_;  // on what the quality gate looks at
  int64_t abandoned_in_a_row_ = 0;
  // In virtual time.
  bool virtual_time_ = false;
  std::vector<double> speeds_;  // tokens a second, by node
  std::map<std::string, HeldLink*> held_links_;
  Timeline timeline_;
  std::vector<NodeOutcome> outcomes_;  // since the last version
  double round_start_ = 0;
  double start_seconds_ = 0;
};

absl::StatusOr<RunReport> Simulation::Run() {
  start_seconds_ = Seconds();
  RETURN_IF_ERROR(Prepare());
  RETURN_IF_ERROR(LoadData());
  RETURN_IF_ERROR(MeasureStart());
  const double rounds_start = Seconds();
  RETURN_IF_ERROR(StartServer());
  RETURN_IF_ERROR(virtual_time_ ? RunTimeline() : RunRounds());
  report_.federated_seconds = Seconds() - rounds_start;
  report_.sections = anatomy_->Sections();
  for (int64_t i = 0; i < fleet_->size(); ++i) {
    report_.nodes[static_cast<size_t>(i)].rounds = fleet_->accepted_rounds(i);
  }
  fleet_.reset();  // the nodes' links end before their server
  server_.reset();
  if (options_.centralized) RETURN_IF_ERROR(RunCentralized());
  RETURN_IF_ERROR(Conclude());
  return std::move(report_);
}

absl::Status Simulation::Prepare() {
  if (options_.workers < 1) return absl::InvalidArgumentError("--parallel: at least 1 is needed");
  ASSIGN_OR_RETURN(files_, OutputFiles::Open(options_.out_dir, environment_.env));
  const int64_t rounds = options_.run.has_rounds() ? options_.run.rounds() : RunPlan().rounds;
  view_ = std::make_unique<LiveView>(environment_.progress, environment_.wall, rounds,
                                     options_.centralized);
  view_->Doing(absl::StrCat("loading ", options_.model));
  ASSIGN_OR_RETURN(std::shared_ptr<const BaseModel> base,
                   BaseModel::Load(options_.model, *environment_.env));
  pool_ = std::make_unique<WorkerPool>(std::move(base), options_.workers);
  return absl::OkStatus();
}

absl::Status Simulation::LoadData() {
  view_->Doing(absl::StrCat("reading ", options_.data.path));
  const BaseModel& base = pool_->base();
  ASSIGN_OR_RETURN(const ChatFormat format,
                   RecognizeChatTemplate(base.tokenizer().chat_template()));
  NodeDataOptions data_options = options_.data;
  data_options.seed = options_.run.seed();
  ASSIGN_OR_RETURN(data_, LoadNodeData(data_options, format, *environment_.env));

  const auto nodes = static_cast<uint32_t>(data_.nodes.size());
  v1::ServerConfig config;
  if (!options_.virtual_time && options_.speeds.slow_share == 0) config.set_retry_seconds(1);
  v1::RunConfig& run = *config.mutable_run();
  run = options_.run;
  const auto usual = static_cast<uint32_t>(RunPlan().nodes_per_round);
  run.set_nodes_per_round(
      std::min(nodes, run.has_nodes_per_round() ? run.nodes_per_round() : usual));
  run.set_min_nodes(nodes);
  // Virtual time stands still in a round, so quotas by time would never be given back.
  run.mutable_admission()->set_max_requests_per_minute(0);
  run.mutable_admission()->set_max_upload_bytes_per_day(0);
  if (run.has_gate()) config.set_holdout("the held-out sample");
  ASSIGN_OR_RETURN(const LoraPlan lora, MakeLoraPlan(run));
  ASSIGN_OR_RETURN(LoraSpec spec, base.MakeLoraSpec(lora.targets));
  ASSIGN_OR_RETURN(plan_, MakeRunPlan(config, std::move(spec), base.sha256()));
  virtual_time_ = options_.virtual_time || options_.speeds.slow_share > 0 || plan_.pace.is_async;
  if (virtual_time_ && options_.attack.kind != AttackKind::kNone) {
    return absl::InvalidArgumentError(
        "--attack: attackers wait for the honest nodes of a round; not with virtual time, slow "
        "nodes or an asynchronous run");
  }
  if (plan_.length > base.config().context_length) {
    return absl::InvalidArgumentError(absl::StrCat("run.training.length: ", plan_.length,
                                                   " is above the base model's context of ",
                                                   base.config().context_length));
  }
  initial_ = LoraAdapter(plan_.lora);
  ThreadPool threads(options_.workers);
  RETURN_IF_ERROR(InitializeAdapter(plan_.init, base, AdapterSeed(plan_), threads,
                                    *environment_.env, initial_));
  v1::Assignment assignment;
  FillAssignment(plan_, assignment);
  held_out_options_.length = plan_.length;
  held_out_options_.split_seed = assignment.training().split_seed();
  held_out_options_.validation_fraction = plan_.validation_fraction;
  held_out_options_.max_tokens = options_.eval_tokens;
  held_out_options_.max_tokens_per_node = options_.eval_tokens_per_node;
  held_out_options_.max_questions = options_.label_questions;
  if (plan_.gate.enabled) held_out_options_.slice_by = plan_.gate.slice_by;
  return absl::OkStatus();
}

absl::Status Simulation::MeasureStart() {
  view_->Doing(absl::StrCat("tokenizing the data of ", data_.nodes.size(), " nodes"));
  ASSIGN_OR_RETURN(held_out_, HeldOut::Make(data_.nodes, held_out_options_, *pool_));
  if (options_.centralized) {
    const int64_t steps = plan_.rounds * plan_.nodes_per_round * plan_.steps;
    pooled_ = PoolTrainingExamples(data_.nodes, pool_->base().tokenizer(), held_out_options_,
                                   steps * plan_.batch_size * plan_.length);
  }
  FillSettings();
  view_->Say(absl::StrCat(
      data_.nodes.size(), " nodes over one base model, ", plan_.nodes_per_round, " drawn a round, ",
      options_.workers, " trained at a time; held-out sample: ", FormatCount(held_out_->tokens()),
      " tokens",
      held_out_->has_labels() ? absl::StrCat(", ", held_out_->questions(), " questions with ",
                                             held_out_->label_count(), " labels")
                              : ""));
  view_->Doing("measuring the base model");
  ASSIGN_OR_RETURN(report_.before, held_out_->Measure(nullptr, held_out_->has_labels(), *pool_));
  report_.after = report_.before;
  const std::vector<LossSum> losses = held_out_->MeasureNodes(nullptr, *pool_);
  for (size_t i = 0; i < losses.size(); ++i) {
    NodeResult node;
    node.node = data_.nodes[i].node;
    for (const Record& record : data_.nodes[i].records) {
      if (!IsValidation(record, held_out_options_.split_seed,
                        held_out_options_.validation_fraction)) {
        ++node.train_records;
      }
    }
    node.validation_tokens = static_cast<uint64_t>(losses[i].num_tokens);
    node.loss_before = losses[i].mean();
    report_.nodes.push_back(std::move(node));
  }
  return absl::OkStatus();
}

absl::Status Simulation::StartServer() {
  ASSIGN_OR_RETURN(
      server_, SimulatedServer::Start(plan_, initial_, JoinPath(files_->scratch_dir(), "server"),
                                      held_out_->slices(), &clock_, environment_.env));
  anatomy_.emplace(plan_.lora);
  FleetOptions fleet;
  fleet.max_validation_tokens = options_.device_eval_tokens;
  fleet.clock = &clock_;
  fleet.seed = plan_.seed;
  fleet.state_memory_bytes = options_.state_memory_bytes;
  fleet.spill_dir = JoinPath(files_->scratch_dir(), "states");
  fleet.env = environment_.env;
  fleet.keep_examples = data_.text_bytes <= kMaxKeptTextBytes;
  fleet.stopping = environment_.interrupted;
  fleet.make_link = [this](const std::string& node_id) {
    std::unique_ptr<FederationLink> link = WatchUploads(
        server_->MakeLink(), [this](const v1::UploadId& /*id*/, absl::string_view bytes) {
          anatomy_->Note(bytes);
          return absl::OkStatus();
        });
    if (options_.keep_updates) {
      link = WatchUploads(std::move(link),
                          KeepUpdates(JoinPath(options_.out_dir, "updates"), environment_.env));
    }
    link = adversary_->Wrap(node_id, std::move(link));
    if (virtual_time_) {
      auto held = std::make_unique<HeldLink>(std::move(link));
      held_links_[node_id] = held.get();
      link = std::move(held);
    }
    return environment_.wrap_link ? environment_.wrap_link(node_id, std::move(link))
                                  : std::move(link);
  };
  AttackOptions attack = options_.attack;
  attack.seed = plan_.seed;
  adversary_.emplace(attack, data_.nodes);
  adversary_->PoisonData(data_.nodes);  // the held-out sample was taken before
  fleet_ = std::make_unique<Fleet>(std::move(data_.nodes), fleet, pool_.get());
  return fleet_->Register();
}

absl::StatusOr<SimulationEvent> Simulation::NextEvent() {
  for (absl::Duration waited; waited < kEventTimeout; waited += absl::Milliseconds(200)) {
    if (interrupted()) return absl::CancelledError("interrupted");
    std::optional<SimulationEvent> event = server_->NextEvent(absl::Milliseconds(200));
    if (!event) continue;
    if (const auto* failed = std::get_if<ServerFailed>(&*event)) return failed->status;
    return *std::move(event);
  }
  return absl::InternalError("the server in this process does not go on with its round");
}

absl::Status Simulation::RunRounds() {
  while (true) {
    ASSIGN_OR_RETURN(const SimulationEvent event, NextEvent());
    if (std::holds_alternative<RunCompleted>(event)) return absl::OkStatus();
    if (const auto* started = std::get_if<RoundStarted>(&event)) {
      ASSIGN_OR_RETURN(const bool published, RunRound(*started));
      abandoned_in_a_row_ = published ? 0 : abandoned_in_a_row_ + 1;
      if (abandoned_in_a_row_ >= kMaxAbandonedInARow) {
        return absl::AbortedError(absl::StrCat(
            abandoned_in_a_row_, " rounds abandoned or refused one after the other, the last: ",
            report_.rounds.back().note));
      }
      if (!published) RETURN_IF_ERROR(fleet_->Nudge());  // the next attempt starts at a check-in
    }
  }
}

void Simulation::MeasureCandidate(const CandidateWaits& waits) {
  if (!base_measured_) base_measured_ = held_out_->MeasureSlices(nullptr, *pool_);
  const auto measure = [&](const std::shared_ptr<const AdapterState>& state) {
    return held_out_->MeasureSlices(&state->adapter(), *pool_);
  };
  server_->NoteCandidate(waits.task.round, {*base_measured_, measure(waits.task.current),
                                            measure(waits.task.candidate)});
  if (waits.nodes.empty() || virtual_time_) return;  // there, nodes come by themselves
  const std::vector<NodeOutcome> outcomes =
      fleet_->RunCohort(waits.nodes, [](const NodeOutcome&) {});
  const bool silent = std::any_of(outcomes.begin(), outcomes.end(),
                                  [](const NodeOutcome& outcome) { return !outcome.status.ok(); });
  if (!silent) return;
  clock_.Advance(plan_.round_deadline + absl::Seconds(1));
  server_->Tick();
}

// Returns whether the round published a version.
absl::StatusOr<bool> Simulation::RunRound(const RoundStarted& started) {
  round_start_ = Seconds();
  view_->RoundStarted(started.round, started.cohort.size());
  const std::vector<NodeOutcome> outcomes = RunCohort(started.cohort);
  if (interrupted()) return absl::CancelledError("interrupted");
  RoundRecord record;
  record.round = started.round;
  SumUp(outcomes, &record);
  const bool unsettled =
      std::any_of(outcomes.begin(), outcomes.end(), [](const NodeOutcome& outcome) {
        return !outcome.status.ok() || outcome.step.kind == StepKind::kWaiting;
      });
  if (unsettled) {  // such a node stays silent: let the deadline pass
    clock_.Advance(plan_.round_deadline + absl::Seconds(1));
    server_->Tick();
  }
  while (true) {
    ASSIGN_OR_RETURN(const SimulationEvent event, NextEvent());
    const RoundCounts* counts = nullptr;
    if (const auto* published = std::get_if<AdapterPublished>(&event)) {
      counts = &published->counts;
      record.version = published->version;
      record.aggregation_error = published->aggregation_error;
      current_ = published->adapter;
    } else if (const auto* abandoned = std::get_if<RoundAbandoned>(&event)) {
      counts = &abandoned->counts;
      record.note = absl::StrCat("abandoned: ", abandoned->reason);
    } else if (const auto* refused = std::get_if<RoundRefused>(&event)) {
      counts = &refused->counts;
      record.note = absl::StrCat("refused: ", refused->reason);
    } else if (const auto* waits = std::get_if<CandidateWaits>(&event)) {
      MeasureCandidate(*waits);
    }
    if (counts == nullptr) continue;
    RETURN_IF_ERROR(EndRound(*counts, std::move(record)));
    return report_.rounds.back().version > 0;
  }
}

absl::Status Simulation::Measure(RoundRecord& record) {
  const bool last = static_cast<int64_t>(record.version) >= plan_.rounds;
  const bool labels = held_out_->has_labels() &&
                      (last || record.version % static_cast<uint64_t>(options_.label_every) == 0);
  ASSIGN_OR_RETURN(record.quality, held_out_->Measure(&current_, labels, *pool_));
  report_.after = *record.quality;
  server_->NoteHoldout(record.version, record.quality->validation_loss, held_out_->tokens());
  return absl::OkStatus();
}

absl::Status Simulation::EndRound(const RoundCounts& counts, RoundRecord record) {
  record.assigned = counts.assigned;
  record.accepted = counts.accepted;
  record.rejected = counts.rejected;
  record.dropped = counts.dropped;
  record.folded = counts.folded;
  if (record.version > 0) RETURN_IF_ERROR(Measure(record));
  record.seconds = Seconds() - round_start_;
  return FinishRound(std::move(record));
}

absl::Status Simulation::RunTimeline() {
  SpeedOptions options = options_.speeds;
  options.seed = plan_.seed;
  speeds_ = DrawSpeeds(options, static_cast<size_t>(fleet_->size()));
  // Nodes come one after the other within the pace of check-ins.
  const double pace = absl::ToDoubleSeconds(plan_.retry);
  for (size_t i = 0; i < speeds_.size(); ++i) {
    timeline_.Add(
        absl::Seconds(pace * static_cast<double>(i) / static_cast<double>(speeds_.size())), i);
  }
  const absl::Duration start = clock_.Monotonic();
  round_start_ = Seconds();
  for (;;) {
    ASSIGN_OR_RETURN(const bool over, DrainEvents());
    if (over) return absl::OkStatus();
    if (interrupted()) return absl::CancelledError("interrupted");
    if (timeline_.empty()) return absl::InternalError("no node has anything left to do");
    const Timeline::Event event = timeline_.Take();
    clock_.Advance(std::max(start + event.at - clock_.Monotonic(), absl::ZeroDuration()));
    server_->Tick();
    RETURN_IF_ERROR(Act(event.node));
  }
}

absl::Status Simulation::Act(size_t node) {
  HeldLink& link = *held_links_.at(fleet_->node_id(static_cast<int64_t>(node)));
  link.Release();
  NodeOutcome outcome =
      std::move(fleet_->RunCohort({fleet_->node_id(static_cast<int64_t>(node))}, {}).front());
  absl::Duration pause = plan_.retry;
  if (link.holds()) {
    const auto tokens = static_cast<double>(plan_.steps * plan_.batch_size * plan_.length);
    pause = absl::Seconds(tokens / speeds_[node]);
  } else if (outcome.status.ok()) {
    if (outcome.step.kind == StepKind::kFinished) return absl::OkStatus();
    pause = outcome.step.pause;
    if (outcome.step.kind != StepKind::kWaiting) {
      view_->NodeDone(outcome);
      outcomes_.push_back(std::move(outcome));
    }
  }
  timeline_.Add(clock_.Monotonic() + pause, node);
  return absl::OkStatus();
}

absl::StatusOr<bool> Simulation::DrainEvents() {
  while (std::optional<SimulationEvent> event = server_->NextEvent(absl::ZeroDuration())) {
    if (const auto* const failed = std::get_if<ServerFailed>(&*event)) return failed->status;
    if (std::holds_alternative<RunCompleted>(*event)) return true;
    if (const auto* const started = std::get_if<RoundStarted>(&*event)) {
      const size_t updates = static_cast<size_t>(plan_.nodes_per_round);
      view_->RoundStarted(started->round, plan_.pace.is_async ? updates : started->cohort.size());
      round_start_ = Seconds();
      continue;
    }
    RoundRecord record;
    record.virtual_seconds = absl::ToDoubleSeconds(clock_.Monotonic());
    const RoundCounts* counts = nullptr;
    if (const auto* const published = std::get_if<AdapterPublished>(&*event)) {
      counts = &published->counts;
      record.round = published->round;
      record.version = published->version;
      record.aggregation_error = published->aggregation_error;
      current_ = published->adapter;
    } else if (const auto* const abandoned = std::get_if<RoundAbandoned>(&*event)) {
      counts = &abandoned->counts;
      record.round = abandoned->round;
      record.note = absl::StrCat("abandoned: ", abandoned->reason);
    } else if (const auto* const refused = std::get_if<RoundRefused>(&*event)) {
      counts = &refused->counts;
      record.round = refused->round;
      record.note = absl::StrCat("refused: ", refused->reason);
    } else if (const auto* const waits = std::get_if<CandidateWaits>(&*event)) {
      MeasureCandidate(*waits);
      continue;
    }
    SumUp(std::exchange(outcomes_, {}), &record);
    RETURN_IF_ERROR(EndRound(*counts, std::move(record)));
  }
  return false;
}

// Attackers go last: they know what the others sent.
std::vector<NodeOutcome> Simulation::RunCohort(const std::vector<std::string>& cohort) {
  std::vector<std::string> honest;
  std::vector<std::string> attackers;
  for (const std::string& node : cohort) {
    (adversary_->Attacks(node) ? attackers : honest).push_back(node);
  }
  const auto on_done = [this](const NodeOutcome& outcome) { view_->NodeDone(outcome); };
  std::vector<NodeOutcome> outcomes = fleet_->RunCohort(honest, on_done);
  for (NodeOutcome& outcome : fleet_->RunCohort(attackers, on_done)) {
    outcomes.push_back(std::move(outcome));
  }
  return outcomes;
}

void Simulation::SumUp(const std::vector<NodeOutcome>& outcomes, RoundRecord* record) {
  double loss = 0;
  double weight = 0;
  std::vector<std::string> notes;
  for (const NodeOutcome& outcome : outcomes) {
    const v1::TaskMetrics& metrics = outcome.step.metrics;
    record->upload_bytes += metrics.upload_bytes();
    record->download_bytes += metrics.download_bytes();
    record->train_tokens += metrics.train_tokens();
    if (!outcome.status.ok()) {
      notes.push_back(absl::StrCat(outcome.node, ": ", outcome.status.message()));
    } else if (outcome.step.kind == StepKind::kAccepted) {
      const auto examples = static_cast<double>(metrics.num_examples());
      loss += examples * metrics.train_loss_last();
      weight += examples;
    } else {
      notes.push_back(absl::StrCat(outcome.node, ": ", StepKindName(outcome.step.kind), ": ",
                                   outcome.step.detail));
    }
  }
  record->train_loss = weight > 0 ? loss / weight : std::nan("");
  for (const std::string& note : notes) view_->Say(absl::StrCat("  ", note));
}

absl::Status Simulation::FinishRound(RoundRecord record) {
  view_->RoundFinished(record);
  RETURN_IF_ERROR(files_->AppendRound(record));
  report_.train_tokens += record.train_tokens;
  report_.rounds.push_back(std::move(record));
  return absl::OkStatus();
}

float Simulation::CentralizedLearningRate() const {
  if (options_.centralized_learning_rate > 0) return options_.centralized_learning_rate;
  return plan_.learning_rate / std::sqrt(static_cast<float>(plan_.nodes_per_round));
}

absl::Status Simulation::RunCentralized() {
  const double start = Seconds();
  CentralizedOptions reference;
  reference.steps_per_round = plan_.nodes_per_round * plan_.steps;
  reference.training.steps = plan_.rounds * reference.steps_per_round;
  reference.training.batch_size = plan_.batch_size;
  reference.training.length = plan_.length;
  reference.training.learning_rate.peak = CentralizedLearningRate();
  reference.training.learning_rate.final_fraction = plan_.final_learning_rate_fraction;
  reference.training.learning_rate.total_steps = reference.training.steps;
  reference.training.adamw.weight_decay = plan_.weight_decay;
  reference.training.clip_norm = plan_.clip_norm;
  reference.training.completion_weight = plan_.completion_weight;
  reference.training.lora_plus_ratio = plan_.lora_plus_ratio;
  reference.training.lora_dropout = plan_.lora_dropout;
  reference.training.seed = Rng::Stream(plan_.seed, "centralized").Next();
  reference.rounds_per_point = std::max<int64_t>(1, plan_.rounds / 10);
  reference.label_every = options_.label_every;
  reference.on_step = [this](const TrainProgress& progress) {
    view_->CentralizedStep(progress);
    return !interrupted();
  };
  LoraAdapter adapter = initial_;
  ASSIGN_OR_RETURN(report_.centralized,
                   TrainCentralized(pooled_, reference, *held_out_, *pool_, adapter));
  report_.centralized_seconds = Seconds() - start;
  return absl::OkStatus();
}

absl::Status Simulation::Conclude() {
  view_->Doing("measuring each node");
  const std::vector<LossSum> losses = held_out_->MeasureNodes(&current_, *pool_);
  for (size_t i = 0; i < losses.size(); ++i) report_.nodes[i].loss_after = losses[i].mean();
  ASSIGN_OR_RETURN(
      report_.adapter_sha256,
      files_->WriteAdapter(current_, pool_->base(), std::string(BaseName(options_.model))));
  report_.total_seconds = Seconds() - start_seconds_;
  RETURN_IF_ERROR(files_->WriteReport(report_));
  return files_->RemoveScratch();
}

void Simulation::FillSettings() {
  report_.title = options_.title;
  report_.adapter_parameters = plan_.lora.num_parameters();
  report_.label_count = held_out_->has_labels() ? held_out_->label_count() : 0;
  report_.label_questions = held_out_->questions();
  report_.label_majority = held_out_->majority_accuracy();
  auto& settings = report_.settings;
  const auto add = [&](const char* name, std::string value) {
    settings.emplace_back(name, std::move(value));
  };
  add("base model",
      absl::StrCat(BaseName(options_.model), ", SHA-256 ", pool_->base().sha256().Hex()));
  add("data", options_.data_name.empty() ? options_.data.path : options_.data_name);
  add("nodes", absl::StrCat(data_.nodes.size(), " (", plan_.nodes_per_round, " drawn a round)"));
  add("rounds", absl::StrCat(plan_.rounds));
  add("seed", absl::StrCat(plan_.seed));
  add("adapter", absl::StrFormat("LoRA rank %d, alpha %g, %d modules, %s values",
                                 plan_.lora.modules().empty() ? 0 : plan_.lora.modules()[0].rank,
                                 plan_.lora.alpha(), plan_.lora.modules().size(),
                                 FormatCount(plan_.lora.num_parameters())));
  add("local training",
      absl::StrFormat("%d steps of %d x %d tokens, AdamW, learning rate %g falling to %g",
                      plan_.steps, plan_.batch_size, plan_.length, plan_.learning_rate,
                      plan_.learning_rate * plan_.final_learning_rate_fraction));
  if (plan_.completion_weight != 1) {
    add("loss", absl::StrFormat("a completion's token counts %g times a plain text's",
                                plan_.completion_weight));
  }
  if (virtual_time_) {
    add("pace", absl::StrFormat(
                    "%s, %g times as many nodes as updates, staleness up to %d; %.0f%% of the "
                    "nodes %g times slower than the others' %g tokens/s",
                    plan_.pace.is_async ? "asynchronous" : "synchronous", plan_.pace.over_selection,
                    plan_.pace.max_staleness, 100 * options_.speeds.slow_share,
                    options_.speeds.slow_factor, options_.speeds.tokens_per_second));
  }
  if (plan_.proximal_mu > 0) add("FedProx", absl::StrFormat("mu %g", plan_.proximal_mu));
  if (plan_.lora_dropout > 0) {
    add("LoRA dropout", absl::StrFormat("%g", plan_.lora_dropout));
  }
  if (options_.centralized) {
    add("centralised reference",
        absl::StrFormat("as many steps on the pooled data, learning rate %.3g falling to %.3g",
                        CentralizedLearningRate(),
                        CentralizedLearningRate() * plan_.final_learning_rate_fraction));
  }
  const bool trellis = plan_.codec.support == UpdateSupport::kTrellis;
  add("update encoding",
      absl::StrCat(UpdateSupportName(plan_.codec.support),
                   trellis || plan_.codec.support == UpdateSupport::kDense
                       ? std::string()
                       : absl::StrFormat(", density %g", plan_.codec.density),
                   ", ", trellis ? plan_.codec.density : plan_.codec.value_bits,
                   " bits a value, error feedback ", plan_.error_feedback ? "on" : "off"));
  add("version encoding",
      plan_.downlink.encoding == DownlinkEncoding::kExact  ? std::string("fp32")
      : plan_.downlink.encoding == DownlinkEncoding::kFp16 ? std::string("fp16")
      : plan_.downlink.density > 0
          ? absl::StrFormat("deltas, density %g", plan_.downlink.density)
          : absl::StrFormat("deltas, %g bits a parameter%s", plan_.downlink.bits_per_parameter,
                            plan_.downlink.trellis ? ", trellis" : ""));
  add("aggregation",
      absl::StrFormat("%s; outer optimizer %s, learning rate %g, momentum %g; a node weighs as its "
                      "examples, at most %s of them",
                      AggregationModeName(plan_.aggregation), OuterOptimizerName(plan_.outer.kind),
                      plan_.outer.learning_rate, plan_.outer.beta1,
                      FormatCount(static_cast<int64_t>(plan_.max_examples_per_node))));
  add("held-out sample",
      absl::StrFormat("%s tokens over all nodes, at most %s of each node; %.0f%% of the records",
                      FormatCount(held_out_->tokens()), FormatCount(options_.eval_tokens_per_node),
                      100 * plan_.validation_fraction));
}

}  // namespace

absl::StatusOr<RunReport> RunSimulation(const SimulationOptions& options,
                                        const SimulationEnvironment& environment) {
  return Simulation(options, environment).Run();
}

}  // namespace fedge
