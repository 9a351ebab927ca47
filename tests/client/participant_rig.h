// A participant over a tiny model, in one process with the server it talks to; what it keeps is in
// memory.
#ifndef FEDGE_TESTS_CLIENT_PARTICIPANT_RIG_H_
#define FEDGE_TESTS_CLIENT_PARTICIPANT_RIG_H_

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/participant.h"
#include "common/base/digest.h"
#include "common/base/logging.h"
#include "common/codec/adapter_delta.h"
#include "common/codec/update_codec.h"
#include "common/training/evaluation.h"
#include "tests/client/fake_server.h"
#include "tests/testing/tiny_model.h"

namespace fedge::testing {

class MemoryStore : public StateStore {
 public:
  absl::StatusOr<std::string> Read(absl::string_view node_id) override {
    const auto found = bytes.find(std::string(node_id));
    if (found == bytes.end()) return absl::NotFoundError("nothing kept");
    return found->second;
  }
  absl::Status Write(absl::string_view node_id, std::string value) override {
    RETURN_IF_ERROR(write_error);
    bytes[std::string(node_id)] = std::move(value);
    return absl::OkStatus();
  }
  std::map<std::string, std::string> bytes;
  absl::Status write_error;
};

inline std::vector<Record> MakeRecords(int count, const std::string& node) {
  std::vector<Record> records;
  for (int i = 0; i < count; ++i) {
    Record record;
    record.node = node;
    record.id = absl::StrCat(node, "-", i);
    record.spans.push_back({absl::StrCat("the secret of record ", i, " is ", i * 7919), true});
    records.push_back(std::move(record));
  }
  return records;
}

class ParticipantTest : public ::testing::Test {
 protected:
  ParticipantTest() : pool_(1) {
    SetLogLevel(LogLevel::kOff);
    const std::string path = WriteTinyModel(::testing::TempDir() + "participant_test", {});
    base_ = BaseModel::Load(path, *Env::Posix()).value();
    transformer_ = std::make_unique<Transformer>(base_, &pool_);
    LoraTargets targets;
    targets.rank = 2;
    targets.alpha = 4;
    spec_ = base_->MakeLoraSpec(targets).value();
    global_ = LoraAdapter(spec_);
    global_.InitializeForTraining(3);
    OfferTask(1, 0);
  }

  std::string EncodeGlobal(uint64_t version) {
    AdapterHeader header;
    header.encoding = AdapterEncoding::kFp16;
    header.to_version = version;
    header.base_model = base_->sha256();
    return EncodeAdapterValues(spec_, header, global_.values()).value();
  }

  v1::AdapterSource SourceOfGlobal(uint64_t version) {
    const std::string content = EncodeGlobal(version);
    v1::AdapterSource source;
    source.set_run_id("run");
    source.set_version(version);
    source.set_values_crc32c(ReadAdapterHeader(content)->values_crc);
    *source.mutable_values() = server_.Offer(content);
    return source;
  }

  v1::Assignment& OfferTask(uint64_t round, uint64_t version) {
    v1::Assignment& task = *server_.answer.mutable_assignment();
    task.Clear();
    task.set_run_id("run");
    task.set_round(round);
    task.set_base_model_sha256(base_->sha256().Raw());
    task.mutable_lora()->set_architecture(spec_.architecture());
    task.mutable_lora()->set_alpha(spec_.alpha());
    for (const LoraModule& module : spec_.modules()) {
      v1::LoraModuleSpec& to = *task.mutable_lora()->add_modules();
      to.set_tensor(module.tensor);
      to.set_in_features(static_cast<uint32_t>(module.in_features));
      to.set_out_features(static_cast<uint32_t>(module.out_features));
      to.set_rank(static_cast<uint32_t>(module.rank));
    }
    task.set_adapter_version(version);
    *task.mutable_adapter() = SourceOfGlobal(version);
    task.mutable_training()->set_steps(3);
    task.mutable_training()->set_batch_size(2);
    task.mutable_training()->set_length(32);
    task.mutable_training()->set_learning_rate(0.01f);
    task.mutable_training()->set_clip_norm(1);
    task.mutable_training()->set_completion_weight(1);
    task.mutable_training()->set_validation_fraction(0.25);
    task.mutable_training()->set_split_seed(11);
    task.mutable_codec()->set_support(v1::CodecPlan::TOP_K);
    task.mutable_codec()->set_density(0.1);
    task.mutable_codec()->set_value_bits(4);
    task.mutable_codec()->set_error_feedback(true);
    task.set_deadline_ms(600'000);
    task.set_seed(5);
    return task;
  }

  Participant MakeParticipant(int records = 40) {
    ParticipantOptions options = options_;
    options.node_id = "alpha";
    options.checkpoint_interval = absl::ZeroDuration();
    ParticipantParts parts = parts_;
    parts.base = base_;
    parts.records = MakeRecords(records, "alpha");
    parts.link = &server_;
    parts.state = &store_;
    parts.adapters = &adapters_;
    parts.outbox = &outbox_;
    parts.checkpoints = &checkpoints_;
    parts.clock = &clock_;
    return Participant(std::move(options), std::move(parts));
  }

  StepOutcome Step(Participant& participant) {
    const auto outcome = participant.RunOnce(*transformer_);
    EXPECT_TRUE(outcome.ok()) << outcome.status();
    return outcome.value_or(StepOutcome());
  }

  // A process that is stopped after the first step of its task.
  void Interrupt() {
    bool stop = false;
    parts_.stopping = [&stop] { return stop; };
    parts_.on_step = [&stop](const TrainProgress&) { stop = true; };
    Participant participant = MakeParticipant();
    EXPECT_TRUE(absl::IsCancelled(participant.RunOnce(*transformer_).status()));
    EXPECT_NE(checkpoints_.bytes["alpha"], "");
    parts_ = ParticipantParts();
  }

  double HeldOutLossOfTheSentAdapter() {
    LoraAdapter sent(spec_);
    EXPECT_TRUE(DecodeAdapterValues(spec_, base_->sha256(), EncodeGlobal(0), sent.values()).ok());
    const LocalExamples local =
        MakeLocalExamples(MakeRecords(40, "alpha"), base_->tokenizer(), 32, 11, 0.25);
    return EvaluateLoss(*transformer_, &sent, local.validation).mean();
  }

  std::string StoredResidual() {
    const auto state = ParticipantState::Parse(store_.bytes["alpha"]);
    return state.ok() ? state->error_feedback : state.status().ToString();
  }

  ThreadPool pool_;
  std::shared_ptr<const BaseModel> base_;
  std::unique_ptr<Transformer> transformer_;
  LoraSpec spec_;
  LoraAdapter global_;
  testing::FakeServer server_;
  MemoryStore store_;
  MemoryStore adapters_;
  MemoryStore outbox_;
  MemoryStore checkpoints_;
  ParticipantOptions options_;  // changes for the next MakeParticipant, so are these
  ParticipantParts parts_;      // what a test wants besides
  ManualClock clock_;
};

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_CLIENT_PARTICIPANT_RIG_H_
