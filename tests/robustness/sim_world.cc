#include "tests/robustness/sim_world.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "server/federation_core.h"
#include "tests/robustness/sim_env.h"
#include "tests/robustness/sim_model.h"
#include "tests/robustness/sim_operator.h"
#include "tests/server/tiny_run.h"

namespace fedge::robustness {
namespace {

constexpr uint64_t kNodes = 6;
constexpr uint64_t kChunkBytes = 150;
constexpr absl::Duration kTick = absl::Seconds(1);
constexpr absl::Duration kCallTimeout = absl::Seconds(20);
constexpr absl::Duration kTrouble = absl::Minutes(8);  // after that nothing goes wrong any more
constexpr absl::Duration kEnd = absl::Minutes(40);     // and by then the run must be over (I10)

// Every fourth seed each: a cohort that must answer in time; one with spare members, leases and
// late updates; an asynchronous run; deadlines that many miss. Every second four have a quality
// gate, half of these ask nodes, too.
RunPlan SimPlan(uint64_t seed) {
  RunPlan plan = testing::TinyPlan();
  plan.nodes_per_round = 5;
  plan.min_nodes = 5;
  plan.quorum = 0.4;
  plan.rounds = 4;
  plan.admission.norm_bound = NormBound::kOff;  // the model sums what was sent
  plan.gate.enabled = seed / 4 % 2 == 1;
  plan.gate.evaluation_nodes = seed / 4 % 4 == 3 ? 3 : 0;
  if (seed % 4 == 0) return plan;
  plan.pace.max_staleness = 3;
  plan.pace.lease = absl::Seconds(20);
  if (seed % 4 == 3) {
    plan.round_deadline = absl::Seconds(12);
    return plan;
  }
  plan.nodes_per_round = 3;
  plan.pace.over_selection = 5.0 / 3;
  plan.pace.is_async = seed % 4 == 2;
  plan.rounds = plan.pace.is_async ? 8 : 5;
  return plan;
}

class World : private CandidateEvaluator {
 public:
  explicit World(uint64_t seed)
      : adversary_(seed),
        plan_(SimPlan(seed)),
        env_(&adversary_),
        model_(plan_),
        operator_(seed),
        devices_(kNodes) {
    for (uint64_t i = 0; i < kNodes; ++i) devices_[i].name = testing::NodeName(i);
  }

  SimResult Run() {
    StartServer();
    for (Device& device : devices_) {
      In(adversary_.Delay(), [this, &device] { CheckIn(device); });
    }
    In(kTick, [this] { Tick(); });
    In(operator_.Pause(), [this] { Operate(); });
    while (!events_.empty() && now() < kEnd && !Over()) {
      const Event event = std::move(const_cast<Event&>(events_.top()));
      events_.pop();
      clock_.Advance(std::max(event.at - now(), absl::ZeroDuration()));
      if (now() >= kTrouble) adversary_.Stop();
      event.act();
      if (core_ != nullptr && (adversary_.dead() || !core_->health().ok())) StopServer();
    }
    if (result_.problem.empty()) result_.problem = model_.Check(disk_);
    if (result_.problem.empty()) result_.problem = operator_.CheckEnd(disk_);
    if (result_.problem.empty() && !Over()) result_.problem = "the run does not end (I10)";
    result_.versions = disk_.versions.size();
    for (const auto& [number, version] : disk_.versions)
      result_.folded += static_cast<uint64_t>(version.counts.folded);
    for (const auto& [number, round] : disk_.rounds) {
      result_.abandoned += round.state == SimDisk::RoundState::kAbandoned;
      result_.refused += round.state == SimDisk::RoundState::kRefused;
    }
    result_.rollbacks = operator_.rollbacks();
    result_.writes = adversary_.writes();
    result_.virtual_seconds = absl::ToDoubleSeconds(now());
    return result_;
  }

 private:
  struct Event {
    absl::Duration at;
    uint64_t order = 0;
    std::function<void()> act;
    bool operator<(const Event& other) const {  // the queue's top is the largest
      return std::tie(other.at, other.order) < std::tie(at, order);
    }
  };
  // A device; `call` tells the answer it waits for from one that came too late.
  struct Device {
    std::string name;
    uint64_t call = 0;
    uint64_t round = 0;
    std::string update;
    bool finished = false;
    absl::Duration cut_off_until;
  };
  struct Stream {
    std::optional<FederationCore::Upload> upload;
    uint64_t life = 0;  // of the server it reached
    v1::UploadId id;
    std::string bytes;
    uint64_t offset = 0;
    uint64_t breaks_at = 0;
  };

  absl::Duration now() { return clock_.Monotonic(); }
  void In(absl::Duration delay, std::function<void()> act) {
    events_.push({now() + delay, ++order_, std::move(act)});
  }
  bool Over() const {
    return std::all_of(devices_.begin(), devices_.end(),
                       [](const Device& device) { return device.finished; });
  }
  Device& Find(const std::string& name) {
    return *std::find_if(devices_.begin(), devices_.end(),
                         [&](const Device& device) { return device.name == name; });
  }

  // The server.
  void StartServer() {
    if (core_ != nullptr) return;
    adversary_.Revive();
    ++life_;
    UploadLimits limits;
    limits.max_upload_bytes = plan_.max_update_bytes;
    FederationCoreOptions options;
    options.clock = &clock_;
    options.tick_interval = absl::ZeroDuration();
    options.evaluator = this;
    auto uploads = UploadBuffer::Open("uploads", limits, env_, clock_);
    if (uploads.ok()) {
      auto core = FederationCore::Create(plan_, testing::TinyAdapter(),
                                         std::make_unique<SimStore>(&disk_, &adversary_),
                                         *std::move(uploads), std::move(options));
      if (core.ok() && !adversary_.dead()) core_ = *std::move(core);
    }
    if (core_ == nullptr) In(adversary_.Delay(), [this] { StartServer(); });
  }
  void StopServer() {
    core_.reset();
    ++result_.restarts;
    if (adversary_.Chance(0.5)) env_.PowerCut();
    if (adversary_.Chance(0.05)) DamageAnUpdate();
    In(adversary_.Delay(), [this] { StartServer(); });
  }
  void DamageAnUpdate() {
    for (auto& [key, record] : disk_.updates) {
      if (record.outcome != Outcome::kAccepted) continue;
      const auto round = disk_.rounds.find(record.counted);  // none: it waits for the next one
      const bool open =
          round == disk_.rounds.end() || round->second.state == SimDisk::RoundState::kOpen;
      const auto blob = disk_.blobs.find(record.digest);
      if (!open || blob == disk_.blobs.end()) continue;
      std::string& bytes = blob->second;
      bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
      model_.Damaged(key.second, key.first);
      ++result_.damaged;
      return;
    }
  }
  // The evaluator lives and dies with the server.
  void Evaluate(CandidateTask task) override {
    const Digest values = task.candidate->ValuesDigest();
    model_.Candidate(task.round, values);
    const double loss = SimModel::Passes(values) ? 3 : 4;
    In(adversary_.Delay(), [this, round = task.round, loss, life = life_] {
      if (core_ == nullptr || life != life_) return;
      const Measurement before{{300, 100}, {}};
      core_->NoteHoldout(round, {before, before, {{loss * 100, 100}, {}}});
    });
  }
  std::vector<std::string> slices() const override { return {}; }

  void Tick() {
    if (core_ != nullptr) core_->Tick();
    In(kTick, [this] { Tick(); });
  }
  void Operate() {
    if (core_ != nullptr) operator_.Act(*core_, adversary_, disk_);
    In(operator_.Pause(), [this] { Operate(); });
  }

  // The network. A request may be lost, come late, come twice; so may its answer.
  bool Reachable(const Device& device) { return now() >= device.cut_off_until; }
  void Send(Device& device, std::function<void()> request) {
    if (adversary_.Chance(0.01)) device.cut_off_until = now() + adversary_.Delay() * 3;
    const uint64_t call = ++device.call;
    In(kCallTimeout, [this, &device, call] {
      if (device.call == call) Retry(device);
    });
    if (adversary_.Drops() || !Reachable(device)) return;
    In(adversary_.Delay(), request);
    if (adversary_.Duplicates()) In(adversary_.Delay() * 10, request);
  }
  // `answer` runs at the device unless it is lost or no longer waited for.
  void Answer(Device& device, uint64_t call, std::function<void()> answer) {
    if (adversary_.dead() || adversary_.Drops() || !Reachable(device)) return;
    In(adversary_.Delay(), [&device, call, answer = std::move(answer)] {
      if (device.call == call) answer();
    });
  }

  // The device.
  void Retry(Device& device) {
    ++device.call;
    if (adversary_.Chance(0.05)) device.update.clear();  // it was switched off: starts anew
    if (device.update.empty()) {
      In(adversary_.Delay(), [this, &device] { CheckIn(device); });
    } else {
      In(adversary_.Delay(), [this, &device] { Query(device); });
    }
  }

  void CheckIn(Device& device) {
    if (device.finished) return;
    v1::CheckInRequest request;
    request.set_node_id(device.name);
    request.set_base_model_sha256(plan_.base_model.Raw());
    Send(device, [this, &device, request, call = device.call + 1] {
      if (core_ == nullptr) return;
      const auto response = core_->CheckIn(request);
      if (!response.ok() || adversary_.dead()) return;
      if (result_.problem.empty()) result_.problem = operator_.Check(*response);
      Answer(device, call, [this, &device, response = *response] { OnCheckIn(device, response); });
    });
  }
  void OnCheckIn(Device& device, const v1::CheckInResponse& response) {
    ++device.call;
    if (response.has_finished()) {
      Served(response.finished().adapter());
      device.finished = true;
      return;
    }
    if (response.has_retry()) {
      In(absl::Milliseconds(response.retry().max_delay_ms()), [this, &device] { CheckIn(device); });
      return;
    }
    if (response.has_evaluation()) return Measure(device, response.evaluation());
    const v1::Assignment& task = response.assignment();
    Served(task.adapter());
    device.round = task.round();
    if (adversary_.Chance(0.03)) return GiveUp(device);
    // Now and then a device that starts anew comes to another result.
    device.update = testing::MakeUpdate(
        plan_, {.round = task.round(),
                .base_version = task.adapter_version(),
                .num_examples = 1 + adversary_.rng().Below(20),
                .seed = adversary_.Chance(0.1) ? adversary_.rng().Next() : task.seed()});
    if (adversary_.Chance(0.03)) device.update[device.update.size() / 2] ^= 1;
    model_.Made(device.name, device.round, device.update);
    In(adversary_.Delay(), [this, &device] { Query(device); });
  }
  // To nodes all candidates are alike; some cannot say so.
  void Measure(Device& device, const v1::EvaluationTask& task) {
    Served(task.assignment().adapter());
    v1::ReportRequest report;
    report.set_run_id(plan_.run_id);
    report.set_round(task.assignment().round());
    report.set_node_id(device.name);
    report.set_completed(!adversary_.Chance(0.1));
    if (report.completed()) {
      v1::EvaluationResult& result = *report.mutable_evaluation();
      result.set_version(task.candidate().version());
      result.set_values_crc32c(task.candidate().values_crc32c());
      v1::LossComparison& losses = *result.add_losses();
      for (v1::HeldOutLoss* const loss : {losses.mutable_current(), losses.mutable_candidate()}) {
        loss->set_nats(30);
        loss->set_tokens(10);
      }
    }
    Send(device, [this, report] {
      if (core_ != nullptr) core_->Report(report).IgnoreError();
    });
    In(adversary_.Delay(), [this, &device] { CheckIn(device); });
  }
  void Served(const v1::AdapterSource& source) {
    model_.Served(source.version(), source.values_crc32c());
  }
  void GiveUp(Device& device) {
    v1::ReportRequest report;
    report.set_run_id(plan_.run_id);
    report.set_round(device.round);
    report.set_node_id(device.name);
    report.set_error("simulated");
    Send(device, [this, report] {
      if (core_ != nullptr) core_->Report(report).IgnoreError();
    });
  }

  v1::UploadId IdOf(const Device& device) const {
    v1::UploadId id;
    id.set_run_id(plan_.run_id);
    id.set_round(device.round);
    id.set_node_id(device.name);
    id.set_sha256(Sha256Of(device.update).Raw());
    id.set_size_bytes(device.update.size());
    return id;
  }
  void Query(Device& device) {
    if (device.update.empty()) return CheckIn(device);
    v1::QueryUploadRequest query;
    *query.mutable_id() = IdOf(device);
    Send(device, [this, &device, query, call = device.call + 1] {
      if (core_ == nullptr) return;
      const auto response = core_->QueryUpload(query);
      if (!response.ok() || adversary_.dead()) return;
      if (response->has_receipt()) Note(query.id(), response->receipt());
      Answer(device, call, [this, &device, response = *response] {
        if (response.has_receipt()) return OnReceipt(device);
        Upload(device, response.committed_bytes());
      });
    });
  }
  void Upload(Device& device, uint64_t offset) {
    auto stream = std::make_shared<Stream>();
    stream->id = IdOf(device);
    stream->bytes = device.update;
    stream->offset = std::min<uint64_t>(offset, device.update.size());
    stream->breaks_at = adversary_.Chance(0.2) ? adversary_.rng().Below(stream->bytes.size())
                                               : stream->bytes.size();
    Send(device, [this, &device, stream, call = device.call + 1] {
      // A repetition is a stream of its own.
      NextMessage(device, std::make_shared<Stream>(*stream), call);
    });
  }
  void NextMessage(Device& device, std::shared_ptr<Stream> stream, uint64_t call) {
    if (core_ == nullptr) return;
    v1::UploadRequest message;
    if (!stream->upload) {
      stream->upload.emplace(core_->StartUpload());
      stream->life = life_;
      *message.mutable_id() = stream->id;
    }
    if (stream->life != life_) return;  // its server is gone
    const std::string piece = stream->bytes.substr(stream->offset, kChunkBytes);
    message.mutable_chunk()->set_offset(stream->offset);
    message.mutable_chunk()->set_data(piece);
    message.mutable_chunk()->set_crc32c(Crc32c(piece));
    stream->offset += piece.size();
    const auto receipt = stream->upload->OnMessage(message);
    if (!receipt.ok() || adversary_.dead()) return;
    if (receipt->has_value()) {
      Note(stream->id, **receipt);
      return Answer(device, call, [this, &device] { OnReceipt(device); });
    }
    if (stream->offset >= stream->breaks_at && stream->breaks_at < stream->bytes.size()) return;
    In(absl::Milliseconds(1 + static_cast<int64_t>(adversary_.rng().Below(50))),
       [this, &device, stream, call] { NextMessage(device, stream, call); });
  }
  // The server said so: from now on it must be true.
  void Note(const v1::UploadId& id, const v1::UploadReceipt& receipt) {
    const bool accepted = receipt.verdict() == v1::UploadReceipt::ACCEPTED;
    result_.accepted += accepted;
    model_.Told(id.node_id(), id.round(), DigestFromRaw(id.sha256()).value(), accepted);
  }
  void OnReceipt(Device& device) {
    ++device.call;
    device.update.clear();
    In(adversary_.Delay(), [this, &device] { CheckIn(device); });
  }

  Adversary adversary_;
  const RunPlan plan_;
  ManualClock clock_;
  SimDisk disk_;
  SimEnv env_;
  SimModel model_;
  SimOperator operator_;
  std::vector<Device> devices_;
  std::unique_ptr<FederationCore> core_;
  uint64_t life_ = 0;
  std::priority_queue<Event> events_;
  uint64_t order_ = 0;
  SimResult result_;
};

}  // namespace

SimResult Simulate(uint64_t seed) { return World(seed).Run(); }

}  // namespace fedge::robustness
