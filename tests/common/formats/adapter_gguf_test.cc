#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "common/formats/adapter_files.h"
#include "common/formats/gguf.h"
#include "common/formats/gguf_writer.h"
#include "common/tensor/quantize.h"
#include "tests/common/formats/example_adapter.h"
#include "tests/testing/shared_data.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using testing::ExampleAdapter;
using testing::ExampleInfo;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnsupported = absl::StatusCode::kUnimplemented;

// A path of this process's own (tests run side by side), removed at its end.
const std::string& TempFile() {
  struct Owned {
    const std::string path =
        absl::StrCat(::testing::TempDir(), "/fedge_adapter_", getpid(), ".gguf");
    ~Owned() { Env::Posix()->Remove(path).IgnoreError(); }
  };
  static const Owned owned;
  return owned.path;
}

std::string Floats(const std::vector<float>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4);
}

// An adapter file's metadata; the tensors follow.
GgufWriter AdapterWriter(float alpha = 4) {
  GgufWriter writer;
  writer.SetString("general.type", "adapter");
  writer.SetString("adapter.type", "lora");
  writer.SetString("general.architecture", "llama");
  if (alpha != 0) writer.SetFloat32("adapter.lora.alpha", alpha);
  return writer;
}

// A [rank, 3] and B [2, rank], all ones.
void AddPair(const std::string& tensor, int64_t rank, GgufWriter* writer) {
  const auto count = static_cast<size_t>(rank);
  writer->AddTensor(tensor + ".lora_a", DType::kF32, {3, rank},
                    Floats(std::vector<float>(3 * count, 1.0f)));
  writer->AddTensor(tensor + ".lora_b", DType::kF32, {rank, 2},
                    Floats(std::vector<float>(2 * count, 1.0f)));
}

absl::StatusOr<LoadedAdapter> ReadBack(const GgufWriter& writer) {
  EXPECT_TRUE(writer.WriteFile(TempFile(), *Env::Posix()).ok());
  return ReadAdapterGguf(TempFile(), *Env::Posix());
}

void ExpectRejected(const GgufWriter& writer, absl::StatusCode code, absl::string_view message) {
  const absl::Status status = ReadBack(writer).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), ::testing::StartsWith(TempFile() + ": "));
  EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(message)));
}

TEST(AdapterGgufTest, WhatIsWrittenIsRead) {
  const LoraAdapter adapter = ExampleAdapter("llama");
  ASSERT_TRUE(WriteAdapterGguf(adapter, ExampleInfo(), TempFile(), *Env::Posix()).ok());
  const auto loaded = ReadAdapter(TempFile(), {}, *Env::Posix());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->adapter.spec().layout_hash(), adapter.spec().layout_hash());
  EXPECT_THAT(loaded->adapter.values(), ElementsAreArray(adapter.values()));
  EXPECT_EQ(loaded->info.base_model, "base.gguf");
  EXPECT_EQ(loaded->info.base_model_sha256, ExampleInfo().base_model_sha256);
  EXPECT_EQ(loaded->info.num_heads, 4);
  EXPECT_EQ(loaded->info.num_kv_heads, 2);
  EXPECT_EQ(loaded->info.architecture, "llama");
}

TEST(AdapterGgufTest, PartsOfATensorAreWrittenAsOneModuleOnAllOfIt) {
  const LoraAdapter adapter = testing::PartsAdapter();
  ASSERT_TRUE(WriteAdapterGguf(adapter, {}, TempFile(), *Env::Posix()).ok());
  const auto file = *GgufFile::Open(TempFile(), *Env::Posix());
  EXPECT_EQ(file->tensors().size(), 6u);
  EXPECT_THAT(file->FindTensor("blk.0.attn_qkv.weight.lora_a")->dims, ElementsAre(16, 6));
  EXPECT_THAT(file->FindTensor("blk.0.attn_qkv.weight.lora_b")->dims, ElementsAre(6, 32));
  EXPECT_THAT(file->FindTensor("blk.0.ffn_up.weight.lora_b")->dims, ElementsAre(2, 48));
  // A row of k, which is not adapted, and the first of v: zero in the columns of q's rank.
  const GgufTensor& b = *file->FindTensor("blk.0.attn_qkv.weight.lora_b");
  const float v = 6.0f / 4.0f;  // the ranks together over v's
  const auto of_v = [&](size_t r) { return v * adapter.b(1)[r * 8]; };
  EXPECT_EQ(b.data.substr(23 * 6 * 4, 12 * 4),
            Floats({0, 0, 0, 0, 0, 0, 0, 0, of_v(0), of_v(1), of_v(2), of_v(3)}));
  const auto loaded = ReadAdapterGguf(TempFile(), *Env::Posix());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const LoraAdapter whole = WithoutParts(adapter).value();
  EXPECT_EQ(loaded->adapter.spec().layout_hash(), whole.spec().layout_hash());
  EXPECT_THAT(loaded->adapter.values(), ElementsAreArray(whole.values()));
}

TEST(AdapterGgufTest, FactorsLieAsLlamaCppWantsThem) {
  LoraModule module;
  module.tensor = "blk.0.attn_v.weight";
  module.in_features = 3;
  module.out_features = 4;
  module.rank = 2;
  LoraAdapter adapter(*LoraSpec::Create("llama", 16, {module}));
  for (size_t i = 0; i < adapter.values().size(); ++i) adapter.values()[i] = static_cast<float>(i);
  ASSERT_TRUE(WriteAdapterGguf(adapter, {}, TempFile(), *Env::Posix()).ok());
  const auto file = *GgufFile::Open(TempFile(), *Env::Posix());
  EXPECT_EQ(*file->GetString("general.type"), "adapter");
  EXPECT_EQ(*file->GetString("adapter.type"), "lora");
  EXPECT_EQ(*file->GetString("general.architecture"), "llama");
  EXPECT_EQ(*file->GetFloat("adapter.lora.alpha"), 16);
  const GgufTensor& a = *file->FindTensor("blk.0.attn_v.weight.lora_a");
  const GgufTensor& b = *file->FindTensor("blk.0.attn_v.weight.lora_b");
  EXPECT_THAT(a.dims, ElementsAre(3, 2));
  EXPECT_THAT(b.dims, ElementsAre(2, 4));
  EXPECT_EQ(a.data, Floats({0, 1, 2, 3, 4, 5}));
  // The buffer has B transposed: component 0 is 6 7 8 9, component 1 is 10 11 12 13.
  EXPECT_EQ(b.data, Floats({6, 10, 7, 11, 8, 12, 9, 13}));
}

TEST(AdapterGgufTest, ModulesComeInCanonicalOrder) {
  GgufWriter writer = AdapterWriter();
  for (const char* const tensor :
       {"output.weight", "blk.10.attn_q.weight", "blk.2.ffn_down.weight",
        "blk.2.attn_output.weight", "blk.2.attn_v.weight", "blk.2.ffn_up.weight",
        "blk.2.attn_q.weight", "blk.2.ffn_gate.weight", "blk.2.attn_k.weight"}) {
    AddPair(tensor, 2, &writer);
  }
  const auto loaded = ReadBack(writer);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  std::vector<std::string> names;
  for (const LoraModule& module : loaded->adapter.spec().modules()) names.push_back(module.tensor);
  EXPECT_THAT(
      names, ElementsAre("blk.2.attn_q.weight", "blk.2.attn_k.weight", "blk.2.attn_v.weight",
                         "blk.2.attn_output.weight", "blk.2.ffn_gate.weight", "blk.2.ffn_up.weight",
                         "blk.2.ffn_down.weight", "blk.10.attn_q.weight", "output.weight"));
}

TEST(AdapterGgufTest, ReadsHalfTypes) {
  for (const DType type : {DType::kF16, DType::kBF16}) {
    const auto encoded = [&](const std::vector<float>& values) {
      std::string bytes(values.size() * 2, '\0');
      EXPECT_TRUE(Quantize(type, values, reinterpret_cast<uint8_t*>(bytes.data())).ok());
      return bytes;
    };
    GgufWriter writer = AdapterWriter();
    writer.AddTensor("blk.0.attn_q.weight.lora_a", type, {2, 1}, encoded({0.5f, -2}));
    writer.AddTensor("blk.0.attn_q.weight.lora_b", DType::kF32, {1, 2}, Floats({3, 4}));
    const auto loaded = ReadBack(writer);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_THAT(loaded->adapter.values(), ElementsAre(0.5f, -2, 3, 4));
  }
}

TEST(AdapterGgufTest, RejectsQuantizedFactors) {
  GgufWriter writer = AdapterWriter();
  writer.AddTensor("blk.0.attn_q.weight.lora_a", DType::kQ8_0, {32, 1}, std::string(34, '\1'));
  ExpectRejected(writer, kUnsupported, "lora_a is Q8_0; adapters are read as F32, F16 or BF16");
}

TEST(AdapterGgufTest, MissingAlphaMeansNoScaling) {
  GgufWriter writer = AdapterWriter(0);
  AddPair("blk.0.attn_q.weight", 8, &writer);
  AddPair("blk.1.attn_q.weight", 8, &writer);
  const auto loaded = ReadBack(writer);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const LoraSpec& spec = loaded->adapter.spec();
  EXPECT_EQ(spec.scale(spec.modules()[0]), 1.0f);
  AddPair("blk.2.attn_q.weight", 4, &writer);
  ExpectRejected(writer, kUnsupported, "alpha is missing or zero and the ranks differ");
}

TEST(AdapterGgufTest, RanksMayDiffer) {
  GgufWriter writer = AdapterWriter();
  AddPair("blk.0.attn_q.weight", 8, &writer);
  AddPair("blk.1.attn_q.weight", 2, &writer);
  const auto loaded = ReadBack(writer);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->adapter.spec().modules()[0].rank, 8);
  EXPECT_EQ(loaded->adapter.spec().modules()[1].rank, 2);
}

TEST(AdapterGgufTest, RejectsAModel) {
  GgufWriter writer;
  writer.SetString("general.architecture", "llama");
  ExpectRejected(writer, kInvalid, "not a LoRA adapter: general.type is not \"adapter\"");
  writer.SetString("general.type", "adapter");
  writer.SetString("adapter.type", "control_vector");
  ExpectRejected(writer, kInvalid, "adapter.type is not \"lora\"");
}

TEST(AdapterGgufTest, RejectsALoneFactor) {
  GgufWriter writer = AdapterWriter();
  writer.AddTensor("blk.0.attn_q.weight.lora_a", DType::kF32, {3, 1}, Floats({1, 2, 3}));
  ExpectRejected(writer, kInvalid, "tensor blk.0.attn_q.weight.lora_a has no B beside it");
  GgufWriter other = AdapterWriter();
  other.AddTensor("blk.0.attn_q.weight.lora_b", DType::kF32, {1, 3}, Floats({1, 2, 3}));
  ExpectRejected(other, kInvalid, "tensor blk.0.attn_q.weight.lora_b has no A beside it");
}

TEST(AdapterGgufTest, RejectsRanksThatDisagree) {
  GgufWriter writer = AdapterWriter();
  writer.AddTensor("blk.0.attn_q.weight.lora_a", DType::kF32, {3, 1}, Floats({1, 2, 3}));
  writer.AddTensor("blk.0.attn_q.weight.lora_b", DType::kF32, {3, 1}, Floats({1, 2, 3}));
  ExpectRejected(writer, kInvalid, "lora_a has rank 1, but blk.0.attn_q.weight.lora_b has rank 3");
}

TEST(AdapterGgufTest, RejectsForeignTensors) {
  const std::pair<const char*, const char*> cases[] = {
      {"blk.0.attn_q.weight.lora_c", "ends neither in .lora_a nor in .lora_b"},
      {"blk.0.attn_norm.weight", "ends neither in .lora_a nor in .lora_b"},
  };
  for (const auto& [name, message] : cases) {
    GgufWriter writer = AdapterWriter();
    writer.AddTensor(name, DType::kF32, {1}, Floats({1}));
    ExpectRejected(writer, kInvalid, message);
  }
}

TEST(AdapterGgufTest, RejectsLayersItDoesNotAdapt) {
  for (const char* const name :
       {"token_embd.weight.lora_a", "blk.0.ffn_gate_exps.weight.lora_a", "blk.0.attn_q.lora_a",
        "blk.00.attn_q.weight.lora_a", "blk.0123456.attn_q.weight.lora_a",
        "blk.-1.attn_q.weight.lora_a", "blk..attn_q.weight.lora_a", "output_norm.weight.lora_a"}) {
    GgufWriter writer = AdapterWriter();
    writer.AddTensor(name, DType::kF32, {1, 1}, Floats({1}));
    ExpectRejected(writer, kUnsupported, "");
  }
}

TEST(AdapterGgufTest, RejectsValuesThatAreNotFinite) {
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    GgufWriter writer = AdapterWriter();
    writer.AddTensor("blk.0.attn_q.weight.lora_a", DType::kF32, {2, 1}, Floats({1, 2}));
    writer.AddTensor("blk.0.attn_q.weight.lora_b", DType::kF32, {1, 2}, Floats({1, bad}));
    ExpectRejected(writer, kInvalid, "lora_b has a value that is not finite");
  }
}

TEST(AdapterGgufTest, RejectsCubesAndEmptyAdapters) {
  GgufWriter writer = AdapterWriter();
  ExpectRejected(writer, kInvalid, "the adapter has 0 modules");
  writer.AddTensor("blk.0.attn_q.weight.lora_a", DType::kF32, {1, 1, 2}, Floats({1, 2}));
  ExpectRejected(writer, kInvalid, "3 dimensions");
}

TEST(AdapterGgufTest, RejectsBadMetadata) {
  GgufWriter writer = AdapterWriter(-4);
  AddPair("blk.0.attn_q.weight", 1, &writer);
  ExpectRejected(writer, kInvalid, "alpha -4 is not a positive finite number");
  GgufWriter digest = AdapterWriter();
  AddPair("blk.0.attn_q.weight", 1, &digest);
  digest.SetString("fedge.base_model.sha256", "xyz");
  ExpectRejected(digest, kInvalid, "");
  GgufWriter heads = AdapterWriter();
  AddPair("blk.0.attn_q.weight", 1, &heads);
  heads.SetUint64("fedge.num_heads", ~uint64_t{0});
  ExpectRejected(heads, kInvalid, "the limit is 65536");
}

TEST(AdapterGgufTest, WritesOnlyLayersThatExist) {
  LoraModule module;
  module.tensor = "token_embd.weight";
  module.in_features = module.out_features = module.rank = 1;
  const LoraAdapter adapter(*LoraSpec::Create("llama", 1, {module}));
  EXPECT_EQ(WriteAdapterGguf(adapter, {}, TempFile() + ".none", *Env::Posix()).code(),
            kUnsupported);
  EXPECT_FALSE(Env::Posix()->Exists(TempFile() + ".none"));
}

TEST(AdapterGgufTest, MissingFileIsNotFound) {
  EXPECT_EQ(ReadAdapter("/no/such/adapter", {}, *Env::Posix()).status().code(),
            absl::StatusCode::kNotFound);
}

struct RealAdapter {
  const char* architecture;
  size_t modules;
};

class RealAdapterTest : public ::testing::TestWithParam<RealAdapter> {};

TEST_P(RealAdapterTest, IsReadAndWrittenWithoutLoss) {
  const std::string name =
      absl::StrCat("models/rand-tiny-", GetParam().architecture, "-f32.lora-r8a16.gguf");
  FEDGE_SHARED_DATA_OR_SKIP(path, name);
  const auto loaded = ReadAdapterGguf(path, *Env::Posix());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const LoraSpec& spec = loaded->adapter.spec();
  EXPECT_EQ(spec.architecture(), GetParam().architecture);
  EXPECT_EQ(spec.alpha(), 16);
  ASSERT_EQ(spec.modules().size(), GetParam().modules);
  for (const LoraModule& module : spec.modules()) EXPECT_EQ(module.rank, 8);
  EXPECT_EQ(loaded->info.num_heads, 0);

  ASSERT_TRUE(WriteAdapterGguf(loaded->adapter, loaded->info, TempFile(), *Env::Posix()).ok());
  const auto original = *GgufFile::Open(path, *Env::Posix());
  const auto written = *GgufFile::Open(TempFile(), *Env::Posix());
  ASSERT_EQ(written->tensors().size(), original->tensors().size());
  for (const GgufTensor& tensor : original->tensors()) {
    const GgufTensor* const copy = written->FindTensor(tensor.name);
    ASSERT_NE(copy, nullptr) << tensor.name;
    EXPECT_EQ(copy->dims, tensor.dims);
    EXPECT_TRUE(copy->data == tensor.data) << tensor.name;
  }
}

INSTANTIATE_TEST_SUITE_P(SharedData, RealAdapterTest,
                         ::testing::Values(RealAdapter{"llama", 28}, RealAdapter{"qwen2", 28},
                                           RealAdapter{"qwen3", 28}, RealAdapter{"gemma3", 49},
                                           RealAdapter{"phi3", 16}),
                         [](const auto& file) { return std::string(file.param.architecture); });

}  // namespace
}  // namespace fedge
