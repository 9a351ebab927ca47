#include "client/local_examples.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace fedge {

LocalExamples MakeLocalExamples(absl::Span<const Record> records, const Tokenizer& tokenizer,
                                int64_t length, uint64_t split_seed, double validation_fraction) {
  LocalExamples local;
  for (const Record& record : records) {
    std::vector<Example>& side =
        IsValidation(record, split_seed, validation_fraction) ? local.validation : local.train;
    for (Example& example : MakeExamples(record, tokenizer, length)) {
      if (example.num_targets > 0) side.push_back(std::move(example));
    }
  }
  return local;
}

std::vector<Example> BoundedSample(absl::Span<const Example> examples, int64_t max_targets,
                                   Rng rng) {
  std::vector<size_t> order(examples.size());
  std::iota(order.begin(), order.end(), size_t{0});
  rng.Shuffle(absl::MakeSpan(order));
  int64_t targets = 0;
  size_t taken = 0;
  while (taken < order.size()) {
    targets += examples[order[taken]].num_targets;
    if (taken > 0 && targets > max_targets) break;
    ++taken;
  }
  order.resize(taken);
  std::sort(order.begin(), order.end());
  std::vector<Example> sample;
  sample.reserve(taken);
  for (const size_t i : order) sample.push_back(examples[i]);
  return sample;
}

}  // namespace fedge
