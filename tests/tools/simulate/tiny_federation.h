// A federation small enough for a test: a random tiny model and six nodes with their own words.
#ifndef FEDGE_TESTS_TOOLS_SIMULATE_TINY_FEDERATION_H_
#define FEDGE_TESTS_TOOLS_SIMULATE_TINY_FEDERATION_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/env.h"
#include "common/base/status.h"
#include "tests/testing/tiny_model.h"
#include "tools/simulate/simulation.h"

namespace fedge::testing {

inline std::string TinyData() {
  std::string lines;
  for (int node = 0; node < 6; ++node) {
    const std::string name = absl::StrCat("Node ", node, " <n", node, "@example.org>");
    for (int i = 0; i < 14 + 2 * node; ++i) {
      absl::StrAppend(&lines, "{\"node\":\"", name, "\",\"id\":\"", i,
                      "\",\"text\":\"the thing of kind ", node, " has number ", i * 17, "\"}\n");
      absl::StrAppend(&lines, "{\"node\":\"", name, "\",\"id\":\"", i, "\",\"prompt\":\"thing ", i,
                      " kind:\",\"completion\":\" ", node % 3 == 0 ? "red" : "blue", "\"}\n");
    }
  }
  return lines;
}

// Model, data and a fresh output folder below `dir` (which is emptied).
inline SimulationOptions TinyFederation(const std::string& dir) {
  Env& env = *Env::Posix();
  if (env.Exists(dir)) FEDGE_CHECK(env.Remove(dir).ok());
  FEDGE_CHECK(env.CreateDirs(dir).ok());
  SimulationOptions options;
  options.model = WriteTinyModel(dir, {});
  options.data.path = JoinPath(dir, "data.jsonl");
  FEDGE_CHECK(env.WriteFileAtomic(options.data.path, TinyData()).ok());
  options.out_dir = JoinPath(dir, "out");
  options.run.set_seed(5);
  options.run.set_rounds(2);
  options.run.set_nodes_per_round(4);
  options.run.mutable_lora()->set_rank(2);
  options.run.mutable_training()->set_steps(2);
  options.run.mutable_training()->set_batch_size(2);
  options.run.mutable_training()->set_length(48);
  options.run.mutable_training()->set_learning_rate(0.01f);
  options.run.mutable_training()->set_validation_fraction(0.2);
  options.eval_tokens = 400;
  options.eval_tokens_per_node = 100;
  options.label_questions = 10;
  options.label_every = 1;
  return options;
}

inline SimulationEnvironment TinyEnvironment() {
  SimulationEnvironment environment;
  environment.env = Env::Posix();
  environment.wall = Clock::Real();
  return environment;
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TOOLS_SIMULATE_TINY_FEDERATION_H_
