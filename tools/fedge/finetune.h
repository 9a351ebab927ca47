// `fedge finetune` behind its flags: data, memory plan, training, files.
#ifndef FEDGE_TOOLS_FEDGE_FINETUNE_H_
#define FEDGE_TOOLS_FEDGE_FINETUNE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/model/base_model.h"
#include "common/training/adapter_init.h"
#include "common/training/trainer.h"
#include "tools/fedge/command_context.h"

namespace fedge {

struct FinetuneOptions {
  std::string model;
  std::string data;
  std::string out;
  std::string lora;     // adapter to continue; the fields up to `init` are of a new one
  LoraTargets targets;  // alpha as written: of rsLoRA too
  bool rslora = false;
  std::string layers;  // "FIRST-LAST", or empty: all
  AdapterInit init;
  TrainOptions train;
  std::string memory_limit;             // "600MB", or empty: none
  std::vector<std::string> may_reduce;  // of optimizer, length, rank
  double validation_fraction = 0.1;
  int64_t max_validation_examples = 256;
  int threads = 1;
  OutputFormat format = OutputFormat::kText;
};

absl::Status RunFinetune(FinetuneOptions options, CommandContext& context);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_FINETUNE_H_
