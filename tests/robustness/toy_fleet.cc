#include "tests/robustness/toy_fleet.h"

#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/transfer.h"
#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/federation_server.h"
#include "tests/robustness/toy_link.h"
#include "tests/server/tiny_run.h"

namespace fedge::robustness {
namespace {

constexpr absl::Duration kPause = absl::Milliseconds(5);

class ToyNode {
 public:
  ToyNode(uint64_t number, const RunPlan& plan, FederationLink* link, Journal* journal)
      : number_(number),
        name_(testing::NodeName(number)),
        plan_(plan),
        journal_(*journal),
        transfer_(link, Clock::Real(), kImpatient, number) {}

  // Whether the run is over. An error: this step failed, another may not.
  absl::StatusOr<bool> Step() {
    v1::CheckInRequest request;
    request.set_node_id(name_);
    request.set_base_model_sha256(plan_.base_model.Raw());
    ASSIGN_OR_RETURN(const v1::CheckInResponse answer, transfer_.CheckIn(request));
    if (answer.has_finished()) {
      RETURN_IF_ERROR(Fetch(answer.finished().adapter()));
      return true;
    }
    if (!answer.has_assignment()) {
      absl::SleepFor(absl::Milliseconds(static_cast<int64_t>(answer.retry().min_delay_ms())));
      return false;
    }
    const v1::Assignment& task = answer.assignment();
    RETURN_IF_ERROR(Fetch(task.adapter()));
    RETURN_IF_ERROR(FEDGE_FAILPOINT("toy.train"));
    const std::string bytes = Update(task.round(), task.adapter_version(), 0);
    RETURN_IF_ERROR(FEDGE_FAILPOINT("toy.encoded"));
    ASSIGN_OR_RETURN(const v1::UploadReceipt receipt, Submit(task.round(), bytes));
    RETURN_IF_ERROR(FEDGE_FAILPOINT("toy.receipt"));
    journal_.Write(absl::StrCat("verdict ", name_, " ", task.round(), " ", Sha256Of(bytes).Hex(),
                                " ", v1::UploadReceipt::Verdict_Name(receipt.verdict()), "\n"));
    return false;
  }

  // After the end: a repetition is answered as the first time, other bytes are refused.
  absl::Status TryReplays() {
    ASSIGN_OR_RETURN(const v1::UploadReceipt same, Submit(1, Update(1, 0, 0)));
    ASSIGN_OR_RETURN(const v1::UploadReceipt other, Submit(1, Update(1, 0, 1)));
    ASSIGN_OR_RETURN(const v1::UploadReceipt future, Submit(99, Update(99, 0, 0)));
    if (same.verdict() == v1::UploadReceipt::ACCEPTED &&
        other.verdict() == v1::UploadReceipt::REJECTED &&
        future.verdict() == v1::UploadReceipt::REJECTED) {
      return absl::OkStatus();
    }
    return absl::DataLossError(absl::StrCat("replays were answered ", same.ShortDebugString(), "; ",
                                            other.ShortDebugString(), "; ",
                                            future.ShortDebugString()));
  }

 private:
  std::string Update(uint64_t round, uint64_t base_version, uint64_t variant) const {
    return testing::MakeUpdate(plan_, {.round = round,
                                       .base_version = base_version,
                                       .num_examples = 1 + number_,
                                       .seed = 1000 * round + 10 * number_ + variant});
  }

  absl::StatusOr<v1::UploadReceipt> Submit(uint64_t round, const std::string& bytes) {
    v1::UploadId id;
    id.set_run_id(plan_.run_id);
    id.set_round(round);
    id.set_node_id(name_);
    id.set_sha256(Sha256Of(bytes).Raw());
    id.set_size_bytes(bytes.size());
    v1::TaskMetrics metrics;
    metrics.set_train_loss_last(1.0 / static_cast<double>(1 + number_));
    return transfer_.Submit(id, metrics, bytes);
  }

  absl::Status Fetch(const v1::AdapterSource& source) {
    std::vector<v1::ContentRef> contents(source.deltas().begin(), source.deltas().end());
    if (source.has_values()) contents.push_back(source.values());
    for (const v1::ContentRef& content : contents) {
      RETURN_IF_ERROR(transfer_.Fetch(name_, content, uint64_t{1} << 30).status());
    }
    if (seen_version_ != source.version()) {
      journal_.Write(absl::StrCat("version ", source.version(), " ", source.values_crc32c(), "\n"));
    }
    seen_version_ = source.version();
    return absl::OkStatus();
  }

  const uint64_t number_;
  const std::string name_;
  const RunPlan& plan_;
  Journal& journal_;
  Transfer transfer_;
  std::optional<uint64_t> seen_version_;
};

}  // namespace

v1::ServerConfig ToyConfig(const std::string& model, const std::string& state_dir) {
  v1::ServerConfig config;
  config.set_base_model(model);
  config.set_state_dir(state_dir);
  config.set_listen("127.0.0.1:0");
  config.set_insecure(true);
  config.set_retry_seconds(0.01);
  v1::RunConfig& run = *config.mutable_run();
  run.set_rounds(kToyRounds);
  run.set_nodes_per_round(kToyNodes);
  run.set_min_nodes(kToyNodes);
  run.mutable_lora()->set_rank(2);
  run.mutable_training()->set_length(32);
  run.mutable_codec()->set_support("dense");
  run.mutable_codec()->set_value_bits(4);
  return config;
}

absl::Status RunToyFleet(const v1::ServerConfig& config, int port, const std::string& journal) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const BaseModel> model,
                   BaseModel::Load(config.base_model(), *Env::Posix()));
  ASSIGN_OR_RETURN(const RunPlan plan, PlanRun(config, *model));
  const std::unique_ptr<FederationLink> link = ConnectTo(port);
  Journal lines(journal);
  std::vector<std::thread> threads;
  for (uint64_t number = 0; number < kToyNodes; ++number) {
    threads.emplace_back([&, number] {
      ToyNode node(number, plan, link.get(), &lines);
      for (absl::StatusOr<bool> done = false; !done.ok() || !*done; done = node.Step()) {
        if (!done.ok()) absl::SleepFor(kPause);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ToyNode node(0, plan, link.get(), &lines);
  for (int attempt = 0;; ++attempt) {  // the server may be killed once more
    const absl::Status status = node.TryReplays();
    if (status.ok() || absl::IsDataLoss(status) || attempt == 50) return status;
    absl::SleepFor(kPause);
  }
}

}  // namespace fedge::robustness
