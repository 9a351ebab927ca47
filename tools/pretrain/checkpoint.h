// The state of a pre-training run on disk: weights, optimizer, step. Little-endian, CRC-32C at the
// end, written atomically. Readable by the same version only: it lives for one run.
#ifndef FEDGE_TOOLS_PRETRAIN_CHECKPOINT_H_
#define FEDGE_TOOLS_PRETRAIN_CHECKPOINT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/digest.h"
#include "common/base/env.h"
#include "common/training/optimizer.h"
#include "tools/pretrain/llama_weights.h"

namespace fedge {

struct PretrainState {
  int64_t step = 0;  // done
  double smooth_loss = 0;
  LlamaWeights* weights = nullptr;          // not owned
  std::vector<AdamW>* optimizer = nullptr;  // one a tensor; not owned
};

// `run` identifies corpus and options.
absl::Status WriteCheckpoint(const PretrainState& state, const Digest& run, absl::string_view path,
                             Env& env);

// Fills `state` from the file. False when there is none. DataLoss: damaged; FailedPrecondition: of
// another run. On error `state` is as before.
absl::StatusOr<bool> ReadCheckpoint(absl::string_view path, const Digest& run, Env& env,
                                    PretrainState& state);

}  // namespace fedge

#endif  // FEDGE_TOOLS_PRETRAIN_CHECKPOINT_H_
