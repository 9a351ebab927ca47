// A node's records as training and held-out examples, and bounded samples of the latter.
#ifndef FEDGE_CLIENT_LOCAL_EXAMPLES_H_
#define FEDGE_CLIENT_LOCAL_EXAMPLES_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/base/rng.h"
#include "common/model/tokenizer.h"
#include "common/training/dataset.h"

namespace fedge {

struct LocalExamples {
  std::vector<Example> train;
  std::vector<Example> validation;  // never trained on
};

// Each record goes to one side as IsValidation says; examples without a target are left out.
LocalExamples MakeLocalExamples(absl::Span<const Record> records, const Tokenizer& tokenizer,
                                int64_t length, uint64_t split_seed, double validation_fraction);

// Examples in a seeded random order as long as they hold at most `max_targets` scored tokens
// together (but at least one), handed back in their old order.
std::vector<Example> BoundedSample(absl::Span<const Example> examples, int64_t max_targets,
                                   Rng rng);

}  // namespace fedge

#endif  // FEDGE_CLIENT_LOCAL_EXAMPLES_H_
