// Examples to rectangular batches.
#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "common/base/status.h"
#include "common/training/dataset.h"

namespace fedge {
namespace {

Batch MakeBatch(int64_t rows, int64_t length) {
  Batch batch;
  batch.batch_size = rows;
  batch.length = length;
  batch.tokens.assign(static_cast<size_t>(rows * length), 0);
  batch.targets.assign(static_cast<size_t>(rows * length), kNoToken);
  batch.weights.assign(static_cast<size_t>(rows * length), 1.0f);
  return batch;
}

// Puts the first `count` tokens of `example` into `row`, from column `used` on.
void CopyExample(const Example& example, int64_t count, int64_t row, int64_t used, Batch& batch) {
  const int64_t to = row * batch.length + used;
  std::copy_n(example.tokens.begin(), count, batch.tokens.begin() + to);
  std::copy_n(example.targets.begin(), count, batch.targets.begin() + to);
}

int64_t Length(const Example& example) { return static_cast<int64_t>(example.tokens.size()); }

// Drops the columns that no row uses.
void Shorten(int64_t length, Batch& batch) {
  if (length == batch.length) return;
  Batch shorter = MakeBatch(batch.batch_size, length);
  for (int64_t row = 0; row < batch.batch_size; ++row) {
    std::copy_n(batch.tokens.begin() + row * batch.length, length,
                shorter.tokens.begin() + row * length);
    std::copy_n(batch.targets.begin() + row * batch.length, length,
                shorter.targets.begin() + row * length);
    std::copy_n(batch.weights.begin() + row * batch.length, length,
                shorter.weights.begin() + row * length);
  }
  batch = std::move(shorter);
}

}  // namespace

BatchSampler::BatchSampler(std::vector<Example> examples, int64_t batch_size, int64_t length,
                           Rng rng, float completion_weight)
    : examples_(std::move(examples)),
      batch_size_(batch_size),
      length_(length),
      rng_(rng),
      completion_weight_(completion_weight) {
  FEDGE_CHECK(batch_size_ > 0 && length_ > 0, "batch of ", batch_size_, " x ", length_);
  examples_.erase(std::remove_if(examples_.begin(), examples_.end(),
                                 [](const Example& e) { return e.num_targets == 0; }),
                  examples_.end());
  order_.resize(examples_.size());
  std::iota(order_.begin(), order_.end(), uint32_t{0});
  next_ = order_.size();  // the first draw shuffles
}

int64_t BatchSampler::FillRow(Batch& batch, int64_t row) {
  if (next_ == order_.size()) {
    rng_.Shuffle(absl::MakeSpan(order_));
    next_ = 0;
  }
  int64_t used = 0;
  while (next_ < order_.size()) {
    const Example& example = examples_[order_[next_]];
    if (used > 0 && used + Length(example) > length_) break;
    const int64_t count = std::min(Length(example), length_);
    CopyExample(example, count, row, used, batch);
    if (example.is_completion) {
      std::fill_n(batch.weights.begin() + row * length_ + used, count, completion_weight_);
    }
    used += count;
    ++next_;
  }
  return used;
}

Batch BatchSampler::Next() {
  FEDGE_CHECK(!examples_.empty(), "no example to draw from");
  Batch batch = MakeBatch(batch_size_, length_);
  int64_t longest = 0;
  for (int64_t row = 0; row < batch_size_; ++row) longest = std::max(longest, FillRow(batch, row));
  Shorten(longest, batch);
  return batch;
}

std::vector<Batch> EvaluationBatches(absl::Span<const Example> examples, int64_t batch_size) {
  FEDGE_CHECK(batch_size > 0, "batch size ", batch_size);
  std::vector<Batch> batches;
  while (!examples.empty()) {
    const absl::Span<const Example> rows = examples.subspan(0, static_cast<size_t>(batch_size));
    examples.remove_prefix(rows.size());
    int64_t length = 0;
    for (const Example& example : rows) length = std::max(length, Length(example));
    if (length == 0) continue;
    Batch batch = MakeBatch(static_cast<int64_t>(rows.size()), length);
    for (size_t row = 0; row < rows.size(); ++row) {
      CopyExample(rows[row], Length(rows[row]), static_cast<int64_t>(row), 0, batch);
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

}  // namespace fedge
