#include "tests/robustness/operated_runs.h"

#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "common/base/status.h"
#include "server/federation_server.h"
#include "server/sqlite_db.h"
#include "server/sqlite_store.h"
#include "tests/robustness/toy_link.h"
#include "tests/robustness/toy_operator.h"
#include "tests/server/tiny_run.h"
#include "tests/testing/tiny_model.h"

namespace fedge::robustness {
namespace {

constexpr char kModel[] = "other.gguf";
constexpr char kHoldout[] = "holdout.txt";  // the server's, too
constexpr char kStream[] = "stream";        // the asynchronous run
constexpr char kRefused[] = "refused";      // the other

std::string ModelIn(const v1::ServerConfig& config) {
  return JoinPath(DirName(config.state_dir()), kModel);
}

v1::RunFile FileOf(const v1::ServerConfig& config, const std::string& id) {
  v1::RunFile file;
  file.set_base_model(kModel);
  v1::RunConfig& run = *file.mutable_run();
  run = config.run();
  run.set_id(id);
  run.set_rounds(9);
  run.set_nodes_per_round(2);
  run.set_quorum(1);
  run.set_min_nodes(2);
  run.mutable_admission()->set_norm_bound("off");
  if (id == kStream) {
    run.set_mode("async");
    run.set_min_nodes(1);
    run.mutable_gate()->set_enabled(false);
  } else {
    file.set_holdout(kHoldout);
    run.mutable_gate()->set_max_regression(0);
  }
  return file;
}

class Operator {
 public:
  Operator(const v1::ServerConfig& config, FederationLink* link, Journal* journal)
      : config_(config), journal_(*journal), admin_(config) {
    for (uint64_t number = 0; number < 2; ++number) {
      devices_.push_back(std::make_unique<Transfer>(link, Clock::Real(), kImpatient, 90 + number));
    }
  }

  absl::Status Play() {
    RETURN_IF_ERROR(Create(kStream));
    RETURN_IF_ERROR(Insist("an update of 'stream'", [&] { return DeviceStep(0, kStream); }));
    RETURN_IF_ERROR(Give("pause", kStream, &v1::AdminService::Stub::RunPause));
    RETURN_IF_ERROR(Give("resume", kStream, &v1::AdminService::Stub::RunResume));
    RETURN_IF_ERROR(Give("stop", kStream, &v1::AdminService::Stub::RunStop));
    RETURN_IF_ERROR(Create(kRefused));
    RETURN_IF_ERROR(Insist("a refusal", [&]() -> absl::StatusOr<bool> {
      for (size_t device = 0; device < 2; ++device) {
        DeviceStep(device, kRefused).status().IgnoreError();  // tried again
      }
      return WasRefused();
    }));
    return Give("stop", kRefused, &v1::AdminService::Stub::RunStop);
  }

 private:
  absl::Status Create(const std::string& id) {
    v1::RunCreateRequest request;
    *request.mutable_file() = FileOf(config_, id);
    v1::RunCreateResponse response;
    return admin_.Call("create " + id, request, &response, &v1::AdminService::Stub::RunCreate);
  }

  using Order = grpc::Status (v1::AdminService::Stub::*)(grpc::ClientContext*, const v1::RunRef&,
                                                         v1::RunInfo*);
  absl::Status Give(const std::string& what, const std::string& id, Order order) {
    v1::RunRef run;
    run.set_run_id(id);
    v1::RunInfo info;
    return admin_.Call(what + " " + id, run, &info, order);
  }

  absl::StatusOr<bool> WasRefused() {
    v1::AuditListRequest request;
    v1::AuditListResponse response;
    RETURN_IF_ERROR(admin_.Ask(request, &response, &v1::AdminService::Stub::AuditList));
    for (const v1::AuditRecordProto& record : response.records()) {
      if (record.run_id() == kRefused && record.action() == "refuse") return true;
    }
    return false;
  }

  // Whether an update was accepted. The second device fails in the first round.
  absl::StatusOr<bool> DeviceStep(size_t number, const std::string& run) {
    Transfer& device = *devices_[number];
    const std::string name = absl::StrCat("other-", number);
    v1::CheckInRequest request;
    request.set_node_id(name);
    if (!plan_) {
      ASSIGN_OR_RETURN(plan_, Plan(run));
    }
    request.set_base_model_sha256(plan_->base_model.Raw());
    ASSIGN_OR_RETURN(const v1::CheckInResponse answer, device.CheckIn(request));
    if (!answer.has_assignment() || answer.assignment().run_id() != run) return false;
    const v1::Assignment& task = answer.assignment();
    if (number == 1 && task.round() == 1) {
      v1::ReportRequest report;
      report.set_run_id(run);
      report.set_round(task.round());
      report.set_node_id(name);
      report.set_error("no battery");
      RETURN_IF_ERROR(device.Report(report));
      return false;
    }
    const std::string bytes = Update(task, number);
    v1::UploadId id;
    id.set_run_id(run);
    id.set_round(task.round());
    id.set_node_id(name);
    id.set_sha256(Sha256Of(bytes).Raw());
    id.set_size_bytes(bytes.size());
    ASSIGN_OR_RETURN(const v1::UploadReceipt receipt, device.Submit(id, v1::TaskMetrics(), bytes));
    if (receipt.verdict() != v1::UploadReceipt::ACCEPTED) {
      return absl::DataLossError(absl::StrCat(name, ": ", receipt.ShortDebugString()));
    }
    journal_.Write(absl::StrCat("operated ", run, " ", name, " ", task.round(), " ",
                                Sha256Of(bytes).Hex(), "\n"));
    return true;
  }

  absl::StatusOr<RunPlan> Plan(const std::string& run) const {
    v1::ServerConfig config = config_;
    config.set_base_model(ModelIn(config_));
    *config.mutable_run() = FileOf(config_, run).run();
    ASSIGN_OR_RETURN(const std::shared_ptr<const BaseModel> model,
                     BaseModel::Load(config.base_model(), *Env::Posix()));
    return PlanRun(config, *model);
  }

  // All are the same change, which is known to make the model worse, whoever's there are.
  std::string Update(const v1::Assignment& task, uint64_t number) const {
    Rng rng(1);
    std::vector<float> values(static_cast<size_t>(plan_->lora.num_parameters()));
    for (float& value : values) value = static_cast<float>(rng.Normal());
    return testing::MakeUpdate(*plan_, {.round = task.round(),
                                        .base_version = task.adapter_version(),
                                        .num_examples = 1 + number,
                                        .values = std::move(values)});
  }

  const v1::ServerConfig& config_;
  Journal& journal_;
  ToyOperator admin_;
  std::vector<std::unique_ptr<Transfer>> devices_;
  std::optional<RunPlan> plan_;  // of either: they differ in what devices do not see
};

absl::Status CheckAcknowledged(SqliteStore& store, const std::string& journal, CaseResult& result) {
  std::istringstream lines(Env::Posix()->ReadFile(journal).value_or(std::string()));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string kind, run, node, digest;
    uint64_t round = 0;
    if (!(words >> kind >> run >> node >> round >> digest) || kind != "operated") continue;
    ASSIGN_OR_RETURN(const auto record, store.FindParticipation(run, round, node));
    if (record && record->outcome == Outcome::kAccepted && record->digest.Hex() == digest) continue;
    ++result.lost;
    return absl::DataLossError(absl::StrCat("the update of ", node, " for round ", round,
                                            " of run '", run,
                                            "' was acknowledged and is not on record (I2)"));
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> RefusedRounds(const std::string& state_dir) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SqliteDb> db,
                   SqliteDb::Open(JoinPath(state_dir, "fedge.db")));
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db->Prepare("SELECT count(*) FROM rounds WHERE run_id=? AND state=4"));
  RETURN_IF_ERROR(query.Bind(kRefused).Step().status());
  return query.Int(0);
}

absl::Status CheckDecisions(SqliteStore& store, int64_t refused) {
  constexpr uint64_t kAll = std::numeric_limits<int64_t>::max();
  ASSIGN_OR_RETURN(const std::vector<AuditRecord> audit, store.ListAudit(0, kAll));
  RETURN_IF_ERROR(VerifyAudit({}, audit));
  std::map<std::pair<std::string, std::string>, int64_t> times;
  for (const AuditRecord& record : audit) ++times[{record.entry.run_id, record.entry.action}];
  for (const char* const run : {kStream, kRefused}) {
    ASSIGN_OR_RETURN(const RunState state, store.GetRunState(run));
    if (state != RunState::kStopped) {
      return absl::DataLossError(absl::StrCat("run '", run, "' is ", RunStateName(state)));
    }
    if (times[{run, "start"}] != 1 || times[{run, "stop"}] != 1) {
      return absl::DataLossError(absl::StrCat("run '", run, "' did not start and stop once (I12)"));
    }
  }
  if (times[{kStream, "pause"}] == 1 && times[{kStream, "resume"}] == 1 &&
      times[{kRefused, "refuse"}] == refused && refused > 0 && times[{kRefused, "publish"}] == 0) {
    return absl::OkStatus();
  }
  return absl::DataLossError("decisions are not on record once each (I12)");
}

// What the abandoned round left went into the candidate that was refused.
absl::Status CheckCarried(SqliteStore& store) {
  ASSIGN_OR_RETURN(const auto first, store.FindParticipation(kRefused, 1, "other-0"));
  if (first && first->counted == 2) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the abandoned round's update counts in round ",
                                          first ? first->counted : 0, " instead of 2 (I2)"));
}

}  // namespace

void AllowOperatedRuns(const std::string& dir, v1::ServerConfig& config) {
  testing::TinyModelOptions options;
  options.seed = 2;
  FEDGE_CHECK(
      Env::Posix()->WriteFileAtomic(JoinPath(dir, kModel), MakeTinyModelGguf(options)).ok());
  config.set_model_dir(dir);
}

absl::Status PlayOperatedRuns(const v1::ServerConfig& config, int port,
                              const std::string& journal) {
  const std::unique_ptr<FederationLink> link = ConnectTo(port);
  Journal lines(journal);
  return Operator(config, link.get(), &lines).Play();
}

void CheckOperatedRuns(const std::string& state_dir, const std::string& journal,
                       CaseResult& result) {
  SqliteStoreOptions options;
  options.dir = state_dir;
  const auto check = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t refused, RefusedRounds(state_dir));
    ASSIGN_OR_RETURN(const std::unique_ptr<SqliteStore> store,
                     SqliteStore::Open(options, *Env::Posix()));
    RETURN_IF_ERROR(CheckAcknowledged(*store, journal, result));
    RETURN_IF_ERROR(CheckDecisions(*store, refused));
    return CheckCarried(*store);
  };
  const absl::Status status = check();
  if (!status.ok() && result.problem.empty()) result.problem = std::string(status.message());
}

}  // namespace fedge::robustness
