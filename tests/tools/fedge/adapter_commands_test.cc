#include "common/codec/update_codec.h"
#include "tests/testing/update_samples.h"
#include "tests/tools/fedge/fedge_fixture.h"
#include "tests/tools/pretrain/tiny_corpus.h"

namespace fedge {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

class InspectTest : public testing::FedgeTest {
 protected:
  nlohmann::json Inspect(const std::string& path) {
    const testing::FedgeRun text = Run({"inspect", path});
    EXPECT_EQ(text.code, 0) << text.err;
    EXPECT_THAT(text.out, HasSubstr("kind"));
    const testing::FedgeRun run = Run({"inspect", path, "--format", "json"});
    EXPECT_EQ(run.code, 0) << run.err;
    return run.Json();
  }
};

TEST_F(InspectTest, ShowsAModel) {
  const nlohmann::json facts = Inspect(model_);
  EXPECT_EQ(facts["kind"], "model (GGUF)");
  EXPECT_EQ(facts["architecture"], "llama");
  EXPECT_EQ(facts["tokenizer"]["tokens"], 320);
  EXPECT_EQ(facts["metadata"]["llama.block_count"], 2);
  EXPECT_EQ(facts["tensors"].size(), 20u);
  EXPECT_EQ(facts["tensors"][0]["shape"].size(), 2u);
  EXPECT_FALSE(
      Run({"inspect", model_, "--no-tensors", "--format", "json"}).Json().contains("tensors"));
}

TEST_F(InspectTest, ChecksEveryWeight) {
  const testing::FedgeRun good = Run({"inspect", model_, "--check", "--format", "json"});
  EXPECT_EQ(good.code, 0) << good.err;
  EXPECT_EQ(good.Json()["checked"], true);
  EXPECT_EQ(Run({"inspect", WriteAdapter("a.gguf"), "--check"}).code, 0);

  std::string bytes = Read(model_);
  const std::string nan("\x00\x00\xc0\x7f", 4);
  bytes.replace(bytes.size() - 64, 4, nan);  // in the last tensor, output_norm
  const std::string bad = Write("nan.gguf", bytes);
  EXPECT_EQ(Run({"inspect", bad}).code, 0);
  const testing::FedgeRun run = Run({"inspect", bad, "--check"});
  EXPECT_NE(run.code, 0);
  EXPECT_THAT(run.err, HasSubstr("nan.gguf: tensor output_norm.weight: row 0, column 16 is nan"));
}

TEST_F(InspectTest, ShowsAdaptersOfBothFormats) {
  const std::string gguf = WriteAdapter("a.gguf");
  nlohmann::json facts = Inspect(gguf);
  EXPECT_EQ(facts["kind"], "LoRA adapter (GGUF)");
  EXPECT_EQ(facts["rank"], 4);
  EXPECT_EQ(facts["modules"], 14);
  EXPECT_EQ(facts["base_model_sha256"].get<std::string>().size(), 64u);
  ASSERT_EQ(Run({"export", "--adapter", gguf, "--to", "peft", "--out", Path("peft")}).code, 0);
  facts = Inspect(Path("peft"));
  EXPECT_EQ(facts["kind"], "LoRA adapter (PEFT folder)");
  EXPECT_EQ(facts["r"], 4);
  facts = Inspect(Path("peft/adapter_model.safetensors"));
  EXPECT_EQ(facts["kind"], "safetensors");
  EXPECT_EQ(facts["tensors"].size(), 28u);
}

TEST_F(InspectTest, ShowsAnEncodedUpdate) {
  UpdateHeader header;
  header.round = 7;
  header.num_examples = 12;
  const std::vector<float> delta(100, 0.5f);
  const auto bytes = EncodeUpdate(delta, testing::FlatLayout(100), header,
                                  {.support = UpdateSupport::kDense, .value_bits = 16}, {});
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  const nlohmann::json facts = Inspect(Write("update", *bytes));
  EXPECT_EQ(facts["kind"], "encoded update");
  EXPECT_EQ(facts["round"], 7);
  EXPECT_EQ(facts["parameters"], 100);
  EXPECT_EQ(facts["support"], "dense");
  EXPECT_EQ(facts["slice"], "A and B");
}

TEST_F(InspectTest, NamesForeignAndDamagedFiles) {
  const std::string whole = Read(model_);
  for (const std::string& path :
       {Write("text", "just some text"), Write("empty", ""), Write("cut", whole.substr(0, 300)),
        Write("update", "FDGU and then nothing"), Write("tensors", std::string(8, '\1') + "{"),
        dir_}) {
    const testing::FedgeRun run = Run({"inspect", path});
    EXPECT_EQ(run.code, 2) << path << ": " << run.err;
    EXPECT_TRUE(run.IsOneErrorLine()) << run.err;
    EXPECT_THAT(run.err, HasSubstr(path));
  }
}

class ExportTest : public testing::FedgeTest {};

TEST_F(ExportTest, GoesToPeftAndBackWithoutAChange) {
  const std::string gguf = WriteAdapter("a.gguf");
  ASSERT_EQ(Run({"export", "--adapter", gguf, "--to", "peft", "--out", Path("peft/")}).code, 0);
  const testing::FedgeRun back = Run({"export", "--adapter", Path("peft"), "--to", "gguf", "--out",
                                      Path("b.gguf"), "--format", "json"});
  ASSERT_EQ(back.code, 0) << back.err;
  EXPECT_EQ(back.Json()["modules"], 14);
  const LoadedAdapter a = ReadAdapterGguf(gguf, env_).value();
  const LoadedAdapter b = ReadAdapterGguf(Path("b.gguf"), env_).value();
  EXPECT_EQ(a.adapter.spec().layout_hash(), b.adapter.spec().layout_hash());
  EXPECT_EQ(a.adapter.values(), b.adapter.values());
}

TEST_F(ExportTest, ReplacesAPeftFolderButNothingElse) {
  const std::string gguf = WriteAdapter("a.gguf");
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(Run({"export", "--adapter", gguf, "--to", "peft", "--out", Path("peft")}).code, 0);
  }
  ASSERT_TRUE(env_.CreateDirs(Path("mine")).ok());
  Write("mine/letter.txt", "dear");
  const testing::FedgeRun run =
      Run({"export", "--adapter", gguf, "--to", "peft", "--out", Path("mine")});
  EXPECT_EQ(run.code, 4);
  EXPECT_TRUE(run.IsOneErrorLine());
  EXPECT_EQ(Read(Path("mine/letter.txt")), "dear");
  EXPECT_THAT(env_.ListDir(dir_).value(), ::testing::Not(Contains("mine.new/")));
}

class FinetuneTest : public testing::FedgeTest {
 protected:
  void SetUp() override {
    FedgeTest::SetUp();
    std::string lines;
    for (int i = 0; i < 40; ++i) {
      absl::StrAppend(&lines, "{\"text\": \"the cat ", i, " sat on the mat and the dog\"}\n");
    }
    data_ = Write("data.jsonl", lines);
  }
  std::vector<std::string> Command(absl::string_view out) const {
    return {"finetune", "--model",  model_, "--data",          data_,  "--out",
            Path(out),  "--rank",   "4",    "--steps",         "15",   "--batch",
            "2",        "--length", "48",   "--learning-rate", "0.02", "--validation",
            "0.25",     "--format", "json"};
  }
  testing::FedgeRun Finetune(absl::string_view out, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = Command(out);
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Run(arguments);
  }
  std::string data_;
};

TEST_F(FinetuneTest, LowersTheHeldOutLossAndWritesBothFormats) {
  const testing::FedgeRun run = Finetune("run");
  ASSERT_EQ(run.code, 0) << run.err;
  const nlohmann::json summary = run.Json();
  EXPECT_LT(summary["validation_loss_after"], summary["validation_loss_before"].get<double>() - 1);
  EXPECT_GT(summary["validation_examples"], 3);
  EXPECT_THAT(run.err, HasSubstr("step 1/15"));
  const LoadedAdapter gguf = ReadAdapterGguf(Path("run/adapter.gguf"), env_).value();
  const LoadedAdapter peft = ReadAdapterPeft(Path("run/peft"), gguf.info, env_).value();
  EXPECT_EQ(gguf.adapter.values(), peft.adapter.values());
  EXPECT_THAT(env_.ListDir(Path("run")).value(), ::testing::ElementsAre("adapter.gguf", "peft/"));
}

TEST_F(FinetuneTest, WritesTheSameBytesForTheSameSeed) {
  ASSERT_EQ(Finetune("a", {"--threads", "1"}).code, 0);
  ASSERT_EQ(Finetune("b", {"--threads", "2"}).code, 0);
  ASSERT_EQ(Finetune("c", {"--seed", "3"}).code, 0);
  EXPECT_EQ(Read(Path("a/adapter.gguf")), Read(Path("b/adapter.gguf")));
  EXPECT_NE(Read(Path("a/adapter.gguf")), Read(Path("c/adapter.gguf")));
}

TEST_F(FinetuneTest, ContinuesAnAdapter) {
  const nlohmann::json first = Finetune("a").Json();
  const testing::FedgeRun second = Finetune("b", {"--lora", Path("a/peft")});
  ASSERT_EQ(second.code, 0) << second.err;
  EXPECT_DOUBLE_EQ(second.Json()["validation_loss_before"].get<double>(),
                   first["validation_loss_after"].get<double>());
}

TEST_F(FinetuneTest, AdaptsTheNamedModulesOnly) {
  ASSERT_EQ(Finetune("a", {"--target-modules", "q,v"}).code, 0);
  EXPECT_EQ(ReadAdapterGguf(Path("a/adapter.gguf"), env_)->adapter.spec().modules().size(), 4u);
}

TEST_F(FinetuneTest, LeavesNothingBehindWhenTheInputIsBad) {
  std::string lines = Read(data_);
  size_t at = 0;
  for (int line = 1; line < 17; ++line) at = lines.find('\n', at) + 1;
  lines.insert(at, "{\"text\": \n");
  data_ = Write("broken.jsonl", lines);
  const testing::FedgeRun run = Finetune("run");
  EXPECT_EQ(run.code, 2);
  EXPECT_TRUE(run.IsOneErrorLine()) << run.err;
  EXPECT_THAT(run.err, HasSubstr("broken.jsonl"));
  EXPECT_THAT(run.err, HasSubstr("17"));
  EXPECT_FALSE(env_.Exists(Path("run")));
}

TEST_F(FinetuneTest, NamesEachThingThatDoesNotFit) {
  EXPECT_EQ(Finetune("run", {"--length", "4096"}).code, 2);
  EXPECT_EQ(Finetune("run", {"--target-modules", "nose"}).code, 2);
  EXPECT_EQ(Finetune("run", {"--rank", "0"}).code, 2);
  EXPECT_EQ(Finetune("run", {"--validation", "1"}).code, 2);
  EXPECT_FALSE(env_.Exists(Path("run")));
  const testing::FedgeRun run = Finetune("data.jsonl/run");
  EXPECT_NE(run.code, 0);
  EXPECT_TRUE(run.IsOneErrorLine()) << run.err;
}

TEST_F(FinetuneTest, WritesNothingWhenInterrupted) {
  interrupted_ = true;
  const testing::FedgeRun run = Finetune("run");
  EXPECT_NE(run.code, 0);
  EXPECT_THAT(run.err, HasSubstr("stopped after step 1; nothing was written"));
  EXPECT_THAT(env_.ListDir(Path("run")).value(), ::testing::IsEmpty());
}

class PretrainCommandTest : public testing::FedgeTest {};

TEST_F(PretrainCommandTest, WritesAModelThatTheOtherCommandsTake) {
  const std::string text = Write("text.txt", testing::SyntheticText(6000, 3));
  const std::string vocabulary = Write("spm.model", testing::TinySentencePieceModel());
  const std::vector<std::string> arguments = {"pretrain",
                                              "--data",
                                              text,
                                              "--vocabulary",
                                              vocabulary,
                                              "--out",
                                              Path("new/base.gguf"),
                                              "--hidden",
                                              "32",
                                              "--layers",
                                              "1",
                                              "--heads",
                                              "2",
                                              "--kv-heads",
                                              "1",
                                              "--ffn",
                                              "64",
                                              "--context",
                                              "64",
                                              "--length",
                                              "16",
                                              "--batch",
                                              "4",
                                              "--steps",
                                              "4",
                                              "--holdout",
                                              "0.2",
                                              "--name",
                                              "tiny",
                                              "--format",
                                              "json"};
  const testing::FedgeRun run = Run(arguments);
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_GT(run.Json()["holdout_loss"], 4.0);
  EXPECT_EQ(Run({"inspect", Path("new/base.gguf"), "--format", "json"})
                .Json()["metadata"]["general.name"],
            "tiny");
  EXPECT_EQ(Run({"eval", "--model", Path("new/base.gguf"), "--data", text, "--context", "64"}).code,
            0);
  EXPECT_THAT(env_.ListDir(Path("new")).value(), ::testing::ElementsAre("base.gguf"));
}

TEST_F(PretrainCommandTest, WritesACheckpointWhenInterrupted) {
  const std::string text = Write("text.txt", testing::SyntheticText(6000, 3));
  const std::string vocabulary = Write("spm.model", testing::TinySentencePieceModel());
  interrupted_ = true;
  const testing::FedgeRun run = Run({"pretrain",
                                     "--data",
                                     text,
                                     "--vocabulary",
                                     vocabulary,
                                     "--out",
                                     Path("base.gguf"),
                                     "--hidden",
                                     "32",
                                     "--layers",
                                     "1",
                                     "--heads",
                                     "2",
                                     "--kv-heads",
                                     "1",
                                     "--ffn",
                                     "64",
                                     "--length",
                                     "16",
                                     "--batch",
                                     "4",
                                     "--steps",
                                     "4",
                                     "--holdout",
                                     "0.2"});
  EXPECT_NE(run.code, 0);
  EXPECT_THAT(run.err, HasSubstr("stopped after step 1 of 4; the same command continues"));
  EXPECT_TRUE(env_.Exists(Path("base.gguf.checkpoint")));
  EXPECT_FALSE(env_.Exists(Path("base.gguf")));
}

}  // namespace
}  // namespace fedge
