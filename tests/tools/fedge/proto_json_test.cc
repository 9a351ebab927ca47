#include "tools/fedge/proto_json.h"

#include <gtest/gtest.h>

#include <sstream>

#include "fedge/v1/admin.pb.h"
#include "tools/fedge/table.h"

namespace fedge {
namespace {

TEST(ProtoJsonTest, WritesWhatScriptsExpect) {
  v1::RunInfo run;
  run.set_run_id("a");
  run.set_state(v1::RUN_PAUSED);
  run.set_base_model_sha256(std::string("\x01\xAB", 2));
  run.set_created_us(1'767'225'600'250'000);
  run.set_version(18446744073709551615u);
  run.mutable_newest()->set_holdout_loss(2.5);
  const nlohmann::ordered_json json = ProtoJson(run);
  EXPECT_EQ(json["state"], "paused");
  EXPECT_EQ(json["base_model_sha256"], "01ab");
  EXPECT_EQ(json["created"], "2026-01-01T00:00:00.250Z");
  EXPECT_EQ(json["version"], 18446744073709551615u);
  EXPECT_EQ(json["newest"]["holdout_loss"], 2.5);
  EXPECT_FALSE(json["newest"].contains("train_loss"));
  EXPECT_TRUE(json["newest"]["created"].is_null());
  EXPECT_FALSE(json.contains("parent_version"));
  EXPECT_EQ(json["collecting"], false);

  v1::RunFile file;
  file.mutable_run()->mutable_lora()->set_alpha(0.1f);
  file.mutable_run()->mutable_lora()->add_target_modules("q");
  EXPECT_EQ(ProtoJson(file).dump(),
            R"({"run":{"lora":{"alpha":0.1,"target_modules":["q"],"node_ranks":[]}}})");
  v1::Event event;
  event.set_level(v1::Event::WARNING);
  EXPECT_EQ(ProtoJson(event)["level"], "warning");
}

TEST(TableTest, AlignsColumnsByCodePoints) {
  Table table({"A", "LONG", "C"});
  table.Add({"f\xC3\xBCnf", "x", "1"});
  table.Add({"a", "yy", ""});
  std::ostringstream out;
  table.Print(out);
  EXPECT_EQ(out.str(), "A     LONG  C\nf\xC3\xBCnf  x     1\na     yy    \n");
}

}  // namespace
}  // namespace fedge
