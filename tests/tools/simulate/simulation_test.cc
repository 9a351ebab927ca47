#include "tools/simulate/simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_split.h"
#include "client/forwarding_link.h"
#include "common/base/digest.h"
#include "common/base/logging.h"
#include "common/codec/update_codec.h"
#include "common/formats/adapter_files.h"
#include "tests/testing/update_samples.h"
#include "tests/tools/report/xml_check.h"
#include "tests/tools/simulate/tiny_federation.h"

namespace fedge {
namespace {

using ::testing::HasSubstr;

// Sends a whole, well-sealed update whose first value is not a number.
class NanLink : public ForwardingLink {
 public:
  using ForwardingLink::ForwardingLink;
  absl::StatusOr<v1::UploadReceipt> Upload(const v1::UploadId& id, const v1::TaskMetrics& metrics,
                                           absl::string_view bytes, uint64_t) override {
    std::string broken(bytes);
    broken.replace(kUpdateHeaderBytes, 2, std::string("\x00\x7e", 2));
    testing::Reseal(&broken);
    v1::UploadId its_id = id;
    its_id.set_sha256(Sha256Of(broken).Raw());
    return link_->Upload(its_id, metrics, broken, 0);
  }
};

// Every upload breaks off in the middle once; the first receipt is lost too.
class ShakyLink : public ForwardingLink {
 public:
  using ForwardingLink::ForwardingLink;
  absl::StatusOr<v1::UploadReceipt> Upload(const v1::UploadId& id, const v1::TaskMetrics& metrics,
                                           absl::string_view bytes, uint64_t offset) override {
    const auto receipt = link_->Upload(id, metrics, bytes, offset);
    if (++uploads_ == 1) return absl::UnavailableError("line cut before the receipt");
    return receipt;
  }
  absl::Status Download(const v1::DownloadRequest& request, const ChunkSink& sink) override {
    if (++downloads_ % 2 == 1) return absl::UnavailableError("line cut");
    return link_->Download(request, sink);
  }

 private:
  int uploads_ = 0;
  int downloads_ = 0;
};

// Adds up what comes down.
class CountingLink : public ForwardingLink {
 public:
  CountingLink(std::unique_ptr<FederationLink> link, std::atomic<uint64_t>* bytes)
      : ForwardingLink(std::move(link)), bytes_(bytes) {}
  absl::Status Download(const v1::DownloadRequest& request, const ChunkSink& sink) override {
    return link_->Download(request, [&](const v1::Chunk& chunk) {
      *bytes_ += chunk.data().size();
      return sink(chunk);
    });
  }

 private:
  std::atomic<uint64_t>* const bytes_;
};

class SimulationTest : public ::testing::Test {
 protected:
  SimulationTest() {
    SetLogLevel(LogLevel::kError);
    dir_ = absl::StrCat(::testing::TempDir(), "simulation/",
                        ::testing::UnitTest::GetInstance()->current_test_info()->name());
    options_ = testing::TinyFederation(dir_);
    environment_ = testing::TinyEnvironment();
  }

  RunReport Run(const std::string& out) {
    options_.out_dir = JoinPath(dir_, out);
    const absl::StatusOr<RunReport> report = RunSimulation(options_, environment_);
    EXPECT_TRUE(report.ok()) << report.status();
    return report.value_or(RunReport());
  }

  std::string File(const std::string& out, const std::string& name) {
    return Env::Posix()->ReadFile(JoinPath(JoinPath(dir_, out), name)).value_or("");
  }

  std::string dir_;
  SimulationOptions options_;
  SimulationEnvironment environment_;
};

// From the run's configuration over the wire to each node, and out into files that know whole
// tensors only.
TEST_F(SimulationTest, TrainsPartsOfFusedLinearsInSomeLayersWithDropout) {
  testing::TinyModelOptions phi;
  phi.architecture = "phi3";
  options_.model = testing::WriteTinyModel(JoinPath(dir_, "phi3"), phi);
  v1::LoraConfig& lora = *options_.run.mutable_lora();
  for (const char* const module : {"q", "v", "up"}) lora.add_target_modules(module);
  lora.set_layers("1-");
  options_.run.mutable_training()->set_lora_dropout(0.25f);
  options_.workers = 1;
  const RunReport one = Run("one");
  options_.workers = 2;
  const RunReport two = Run("two");
  EXPECT_EQ(one.adapter_sha256, two.adapter_sha256);
  EXPECT_EQ(one.adapter_parameters, 2 * (32 + 32) + 2 * (32 + 16) + 2 * (32 + 64));
  const auto written =
      ReadAdapterGguf(JoinPath(options_.out_dir, "adapter.gguf"), *Env::Posix()).value();
  const std::vector<LoraModule>& modules = written.adapter.spec().modules();
  ASSERT_EQ(modules.size(), 2u);
  EXPECT_EQ(modules[0].tensor, "blk.1.attn_qkv.weight");
  EXPECT_EQ(modules[0].rank, 4);
  EXPECT_EQ(modules[1].tensor, "blk.1.ffn_up.weight");
  EXPECT_EQ(modules[1].rank, 2);
  float most = 0;
  for (const float value : written.adapter.b(1)) most = std::max(most, std::abs(value));
  EXPECT_GT(most, 1e-4f);  // it learned
  options_.run.mutable_training()->clear_lora_dropout();
  EXPECT_NE(Run("without").adapter_sha256, one.adapter_sha256);
}

TEST_F(SimulationTest, TheSameSeedGivesTheSameBytesForAnyNumberOfWorkers) {
  options_.workers = 1;
  const RunReport one = Run("one");
  options_.workers = 2;
  const RunReport two = Run("two");
  EXPECT_EQ(one.adapter_sha256.size(), 64u);
  EXPECT_EQ(one.adapter_sha256, two.adapter_sha256);
  EXPECT_EQ(Sha256Of(File("one", "peft/adapter_model.safetensors")),
            Sha256Of(File("two", "peft/adapter_model.safetensors")));
  EXPECT_EQ(one.after.validation_loss, two.after.validation_loss);
  EXPECT_EQ(one.centralized.back().quality.validation_loss,
            two.centralized.back().quality.validation_loss);
  options_.run.set_seed(6);
  EXPECT_NE(Run("other").adapter_sha256, one.adapter_sha256);
}

TEST_F(SimulationTest, StatesThatSpillToDiskChangeNothing) {
  options_.centralized = false;
  options_.run.set_rounds(3);  // nodes come twice: residuals are read back
  const RunReport in_memory = Run("memory");
  options_.state_memory_bytes = 0;
  EXPECT_EQ(Run("spilled").adapter_sha256, in_memory.adapter_sha256);
}

TEST_F(SimulationTest, CountsWhatComesDown) {
  options_.centralized = false;
  options_.run.set_rounds(4);
  std::atomic<uint64_t> bytes{0};
  environment_.wrap_link = [&](const std::string&, std::unique_ptr<FederationLink> link) {
    return std::make_unique<CountingLink>(std::move(link), &bytes);
  };
  uint64_t parameters = 0;
  uint64_t of_encoding[3] = {};
  const char* const encodings[3] = {"delta", "fp16", "exact"};
  for (int i = 0; i < 3; ++i) {
    bytes = 0;
    options_.run.mutable_downlink()->set_encoding(encodings[i]);
    const RunReport report = Run(encodings[i]);
    for (const RoundRecord& round : report.rounds) of_encoding[i] += round.download_bytes;
    EXPECT_EQ(of_encoding[i], bytes.load()) << encodings[i];
    EXPECT_NE(report.after.validation_loss, report.before.validation_loss) << encodings[i];
    parameters = static_cast<uint64_t>(report.adapter_parameters);
  }
  // 16 times a version of 16 or 32 bits a value; 12 times about a bit.
  const uint64_t fp16 = 16 * 2 * parameters;
  EXPECT_NEAR(static_cast<double>(of_encoding[1]), static_cast<double>(fp16), 16 * 124);
  EXPECT_NEAR(static_cast<double>(of_encoding[2]), 2.0 * static_cast<double>(fp16), 16 * 124);
  EXPECT_LT(of_encoding[0], fp16 / 4);
}

TEST_F(SimulationTest, CountsWhatHappened) {
  const RunReport report = Run("out");
  ASSERT_EQ(report.rounds.size(), 2u);
  uint64_t accepted = 0;
  for (const RoundRecord& round : report.rounds) {
    EXPECT_EQ(round.assigned, 4);
    EXPECT_EQ(round.accepted, 4);
    EXPECT_GT(round.upload_bytes, 4 * 128u);
    EXPECT_EQ(round.download_bytes > 0, round.round > 1);  // a seed makes version 0
    EXPECT_GT(round.train_tokens, 0u);
    ASSERT_TRUE(round.quality.has_value());
    EXPECT_TRUE(round.quality->label_accuracy.has_value());
    accepted += static_cast<uint64_t>(round.accepted);
  }
  ASSERT_EQ(report.nodes.size(), 6u);
  uint64_t rounds_of_nodes = 0;
  for (const NodeResult& node : report.nodes) {
    rounds_of_nodes += static_cast<uint64_t>(node.rounds);
    EXPECT_GT(node.train_records, 10u);
  }
  EXPECT_EQ(rounds_of_nodes, accepted);
  EXPECT_EQ(report.label_count, 2);
  EXPECT_LT(report.after.validation_loss, report.before.validation_loss);
  EXPECT_EQ(report.centralized.size(), 2u);
}

TEST_F(SimulationTest, ItsFilesLoad) {
  const RunReport report = Run("out");
  Env& env = *Env::Posix();
  const auto gguf = ReadAdapterGguf(JoinPath(dir_, "out/adapter.gguf"), env);
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  EXPECT_EQ(gguf->adapter.spec().num_parameters(), report.adapter_parameters);
  const auto peft = ReadAdapterPeft(JoinPath(dir_, "out/peft"), gguf->info, env);
  ASSERT_TRUE(peft.ok()) << peft.status();
  EXPECT_EQ(peft->adapter.spec().layout_hash(), gguf->adapter.spec().layout_hash());
  EXPECT_EQ(Sha256Of(File("out", "adapter.gguf")).Hex(), report.adapter_sha256);

  const std::vector<std::string> lines =
      absl::StrSplit(File("out", "metrics.jsonl"), '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(nlohmann::json::parse(lines[1])["round"], 2);
  const auto summary = nlohmann::json::parse(File("out", "summary.json"));
  EXPECT_EQ(summary["adapter_sha256"], report.adapter_sha256);
  EXPECT_EQ(summary["nodes"].size(), 6u);
  const nlohmann::json& sections = summary["update_sections"];
  EXPECT_NEAR(sections["header"].get<double>() + sections["positions"].get<double>() +
                  sections["scales"].get<double>() + sections["values"].get<double>(),
              1, 1e-9);
  EXPECT_NEAR(sections["bits_per_parameter"].get<double>(),
              8 * summary["traffic"]["upload_bytes_per_node_and_round"].get<double>() /
                  static_cast<double>(report.adapter_parameters),
              1e-6);
  EXPECT_EQ(testing::XmlProblem(File("out", "report.html")), "");
  EXPECT_FALSE(env.Exists(JoinPath(dir_, "out/.simulation")));
}

TEST_F(SimulationTest, ANodeThatSendsNanIsRejectedAndTheRoundGoesOn) {
  options_.centralized = false;
  options_.run.set_nodes_per_round(6);
  options_.run.mutable_codec()->set_support("dense");
  environment_.wrap_link = [](const std::string& node, std::unique_ptr<FederationLink> link) {
    return absl::StrContains(node, "Node 3") ? std::make_unique<NanLink>(std::move(link))
                                             : std::move(link);
  };
  const RunReport report = Run("out");
  ASSERT_EQ(report.rounds.size(), 2u);
  for (const RoundRecord& round : report.rounds) {
    EXPECT_EQ(round.accepted, 5);
    EXPECT_EQ(round.rejected, 1);
    EXPECT_EQ(round.version, round.round);
  }
  EXPECT_EQ(report.nodes[3].rounds, 0);
  EXPECT_TRUE(std::isfinite(report.after.validation_loss));
}

TEST_F(SimulationTest, ShakyLinksChangeNothing) {
  options_.centralized = false;
  const RunReport steady = Run("steady");
  environment_.wrap_link = [](const std::string&, std::unique_ptr<FederationLink> link) {
    return std::make_unique<ShakyLink>(std::move(link));
  };
  EXPECT_EQ(Run("shaky").adapter_sha256, steady.adapter_sha256);
}

TEST_F(SimulationTest, KeepsUpdatesWhenAsked) {
  options_.centralized = false;
  options_.keep_updates = true;
  Run("out");
  const auto files = Env::Posix()->ListDir(JoinPath(dir_, "out/updates/round-0001"));
  ASSERT_TRUE(files.ok());
  EXPECT_EQ(files->size(), 4u);
}

TEST_F(SimulationTest, NodesOfTwoRanksTrainOneAdapter) {
  options_.centralized = false;
  options_.keep_updates = true;
  options_.run.set_nodes_per_round(6);
  options_.run.mutable_lora()->set_rank(16);
  v1::NodeRankConfig* const small = options_.run.mutable_lora()->add_node_ranks();
  small->set_rank(4);
  small->set_share(0.5);
  const RunReport report = Run("out");
  EXPECT_LT(report.after.validation_loss, report.before.validation_loss);
  int whole_nodes = 0;
  int small_nodes = 0;
  const std::string dir = JoinPath(dir_, "out/updates/round-0001");
  const auto files = Env::Posix()->ListDir(dir);
  ASSERT_TRUE(files.ok()) << files.status();
  for (const std::string& name : *files) {
    const std::string bytes = Env::Posix()->ReadFile(JoinPath(dir, name)).value();
    const auto header = ReadUpdateHeader(bytes);
    ASSERT_TRUE(header.ok()) << header.status();
    small_nodes += header->slice == AdapterSlice{.end_component = 4} ? 1 : 0;
    whole_nodes += header->slice == AdapterSlice() ? 1 : 0;
  }
  EXPECT_GE(small_nodes, 1);
  EXPECT_GE(whole_nodes, 1);
  EXPECT_EQ(small_nodes + whole_nodes, 6);
  for (const RoundRecord& round : report.rounds) {
    EXPECT_EQ(round.accepted, 6);
  }
  // In the first round A hardly moves, B being zero: top-k sends none of it.
  EXPECT_EQ(report.rounds.front().aggregation_error, 0);
  EXPECT_GT(report.rounds.back().aggregation_error, 0);
  EXPECT_LT(report.rounds.back().aggregation_error, 1);
}

TEST_F(SimulationTest, EveryAggregationModeLearns) {
  options_.centralized = false;
  options_.run.mutable_codec()->set_support("dense");
  for (const std::string& mode : std::vector<std::string>{"factor-averaging", "rolora", "ffa",
                                                          "flexlora", "fedex", "flora"}) {
    options_.run.mutable_aggregation()->set_mode(mode);
    const RunReport report = Run(mode);
    EXPECT_LT(report.after.validation_loss, report.before.validation_loss) << mode;
    const double error = report.rounds.back().aggregation_error;
    if (mode == "rolora" || mode == "ffa") {
      EXPECT_EQ(error, 0) << mode;
    } else {
      EXPECT_GT(error, 0) << mode;
      EXPECT_LT(error, 0.9) << mode;
    }
    const auto gguf =
        ReadAdapterGguf(JoinPath(dir_, absl::StrCat(mode, "/adapter.gguf")), *Env::Posix());
    ASSERT_TRUE(gguf.ok()) << gguf.status();
    EXPECT_EQ(gguf->adapter.spec().modules()[0].rank, mode == "fedex" || mode == "flora" ? 4 : 2);
  }
}

TEST_F(SimulationTest, AnOutputFolderThatCannotBeWrittenEndsItBeforeAnyWork) {
  options_.out_dir = JoinPath(options_.data.path, "out");  // below a file
  options_.model = "no such model";
  const absl::StatusOr<RunReport> report = RunSimulation(options_, environment_);
  ASSERT_FALSE(report.ok());
  EXPECT_THAT(report.status().message(), HasSubstr("data.jsonl"));
}

TEST_F(SimulationTest, ABrokenLineOfTheDataIsNamed) {
  ASSERT_TRUE(Env::Posix()
                  ->WriteFileAtomic(options_.data.path, testing::TinyData() + "{\"text\": 7}\n")
                  .ok());
  const absl::StatusOr<RunReport> report = RunSimulation(options_, environment_);
  EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(report.status().message(), HasSubstr("data.jsonl:229"));
}

TEST_F(SimulationTest, InterruptingEndsIt) {
  int asked = 0;
  environment_.interrupted = [&] { return ++asked > 3; };
  options_.workers = 1;
  EXPECT_EQ(RunSimulation(options_, environment_).status().code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace fedge
