// How fast the bundled model trains, printed by engine_bench.
#ifndef FEDGE_TESTS_BENCH_DEMO_STEPS_H_
#define FEDGE_TESTS_BENCH_DEMO_STEPS_H_

#include <cstdint>
#include <string>

#include "common/tensor/matmul.h"

namespace fedge {

struct DemoOptions {
  std::string model;     // GGUF
  int threads = 0;       // 0: one, then two
  int repeat = 9;        // pieces, of which the best counts
  int64_t tokens = 512;  // of a node that shares a pass, as 4 sequences
};

// Tokens/s of LoRA training (loss, gradient, AdamW), 4 sequences of 128 tokens a step, rank 8 on
// all linears; 0 when the model is not where it is looked for.
double DemoTokensPerSecond(const DemoOptions& options, Precision precision, int threads);

// A table: nodes with 4 sequences each, their gradients in one pass through the base, next to a
// pass each. Pieces of both are taken in turn.
void PrintSharedPasses(const DemoOptions& options);

}  // namespace fedge

#endif  // FEDGE_TESTS_BENCH_DEMO_STEPS_H_
