#include <memory>
#include <string>
#include <vector>

#include "tools/fedge/commands.h"
#include "tools/fedge/finetune.h"

namespace fedge {
namespace {

void AddAdapterOptions(CLI::App* command, FinetuneOptions& options) {
  command->add_option("--lora", options.lora, "Adapter to continue instead of a new one")
      ->type_name("PATH[:SCALE]");
  command->add_option("--rank", options.targets.rank, "LoRA rank (default 16)")
      ->check(CLI::Range(int64_t{1}, kMaxLoraRank))
      ->type_name("R");
  command->add_option("--alpha", options.targets.alpha, "LoRA alpha (default 32)")->type_name("A");
  command->add_flag("--rslora", options.rslora, "Scale by alpha / sqrt(rank), not alpha / rank");
  command
      ->add_option("--target-modules", options.targets.modules,
                   "Layers to adapt: all (default) or q,k,v,o,gate,up,down,output")
      ->delimiter(',')
      ->type_name("NAMES");
  command->add_option("--layers", options.layers, "Only these blocks, from 0: FIRST-LAST or FIRST-")
      ->type_name("RANGE");
  command
      ->add_option("--init", options.init.kind,
                   "zero-b (default), or loftq: from what quantization took from the model")
      ->type_name("KIND");
  command
      ->add_option("--init-from", options.init.unquantized,
                   "loftq: the model's F32, F16 or BF16 GGUF")
      ->type_name("FILE");
}

void AddMemoryOptions(CLI::App* command, FinetuneOptions& options) {
  command
      ->add_option("--memory-limit", options.memory_limit,
                   "Plan for this much resident memory, mapped model included: 600MB, 1.5GB")
      ->type_name("SIZE");
  command
      ->add_option("--may-reduce", options.may_reduce,
                   "What the plan may make smaller than asked: optimizer,length,rank")
      ->delimiter(',')
      ->check(CLI::IsMember(std::vector<std::string>{"optimizer", "length", "rank"}))
      ->type_name("NAMES");
  command
      ->add_option("--optimizer-bits", options.train.adamw.moment_bits,
                   "Of each of the optimizer's moments: 32 (default) or 8")
      ->check(CLI::IsMember(std::vector<int>{8, 32}))
      ->type_name("BITS");
}

void AddTrainingOptions(CLI::App* command, FinetuneOptions& options) {
  TrainOptions& train = options.train;
  command->add_option("--steps", train.steps, "Optimizer steps (default 100)")->type_name("N");
  command->add_option("--batch", train.batch_size, "Rows a step (default 4)")->type_name("B");
  command->add_option("--length", train.length, "Tokens a row (default 256)")->type_name("T");
  command->add_option("--learning-rate", train.learning_rate.peak, "Peak (default 1e-3)")
      ->type_name("RATE");
  command
      ->add_option("--lora-plus", train.lora_plus_ratio,
                   "B's learning rate in A's (LoRA+), e.g. 16 (default 1)")
      ->type_name("RATIO");
  command
      ->add_option("--lora-dropout", train.lora_dropout,
                   "Part of the adapters' input left out in each step (default 0)")
      ->type_name("P");
  command->add_option("--warmup", train.learning_rate.warmup_steps, "Steps to the peak (default 0)")
      ->type_name("N");
  command->add_option("--weight-decay", train.adamw.weight_decay, "AdamW's decay (default 0)")
      ->type_name("W");
  command->add_option("--clip", train.clip_norm, "Gradient norm limit (default 1); 0: none")
      ->type_name("NORM");
  command
      ->add_option("--completion-weight", train.completion_weight,
                   "What a token of a completion counts in the loss beside one of plain text "
                   "(default 1)")
      ->type_name("W");
  command->add_option("--seed", train.seed, "Seed of everything random (default 0)")
      ->type_name("S");
  command
      ->add_option("--validation", options.validation_fraction,
                   "Fraction of records held out (default 0.1)")
      ->type_name("F");
}

}  // namespace

void RegisterFinetune(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<FinetuneOptions>();
  options->train.steps = 100;
  CLI::App* command =
      app.add_subcommand("finetune", "Train a LoRA adapter on this machine, without a server");
  command->add_option("--model", options->model, "Base model (GGUF)")
      ->required()
      ->type_name("FILE");
  command->add_option("--data", options->data, "JSONL or text file, or a folder of such")
      ->required()
      ->type_name("PATH");
  command->add_option("--out", options->out, "Folder for adapter.gguf and peft/")
      ->required()
      ->type_name("DIR");
  AddAdapterOptions(command, *options);
  AddTrainingOptions(command, *options);
  AddMemoryOptions(command, *options);
  AddThreadsOption(command, options->threads);
  AddFormatOption(command, options->format);
  command->footer(
      "Example:\n"
      "  fedge finetune --model model.gguf --data notes.jsonl --out run --rank 16 --steps 200\n"
      "  fedge finetune --model model.gguf --data notes.jsonl --out run --memory-limit 600MB");
  context.AddCommand(command, [options, &context] { return RunFinetune(*options, context); });
}

}  // namespace fedge
