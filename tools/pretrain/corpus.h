// The text a model is pre-trained on, as one stream of tokens with a held-out part.
#ifndef FEDGE_TOOLS_PRETRAIN_CORPUS_H_
#define FEDGE_TOOLS_PRETRAIN_CORPUS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/digest.h"
#include "common/base/env.h"
#include "common/base/thread_pool.h"
#include "common/model/tokenizer.h"
#include "common/model/transformer.h"

namespace fedge {

// Documents of a corpus file: they are separated by a line that holds only a form feed. Line feeds
// around a document and empty documents are dropped. The views point into `text`.
std::vector<absl::string_view> SplitDocuments(absl::string_view text);

struct CorpusOptions {
  int64_t length = 256;         // T: tokens a window
  double holdout_fraction = 0;  // [0, 1) of the stream, in blocks of 16 windows
  int64_t max_holdout_windows = 64;
  uint64_t seed = 0;
};

// Immutable. Each document stands as BOS, its tokens, EOS (where the vocabulary has them).
class TokenCorpus {
 public:
  // FailedPrecondition when the training or the held-out part is shorter than one window; errors of
  // `env` name the file. Tokenizes on all threads of `pool`, the result does not depend on them.
  static absl::StatusOr<TokenCorpus> Read(absl::Span<const std::string> files,
                                          const Tokenizer& tokenizer, const CorpusOptions& options,
                                          ThreadPool& pool, Env& env);

  // `rows` windows drawn uniformly from the training part: a pure function of (seed, step). The
  // first input of a window is replaced by BOS, as at the start of any text the model is given, and
  // neither that position nor the one before a document's BOS has a target.
  Batch TrainingBatch(int64_t step, int64_t rows) const;
  // The held-out windows (at most max_holdout_windows, evenly spread), in batches of `rows`.
  std::vector<Batch> HoldoutBatches(int64_t rows) const;

  int64_t num_documents() const { return num_documents_; }
  int64_t num_tokens() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t num_training_tokens() const;
  int64_t num_bytes() const { return num_bytes_; }
  const Digest& digest() const { return digest_; }  // of the stream and its split

 private:
  struct Run {  // [begin, end) of the stream
    int64_t begin = 0;
    int64_t end = 0;
  };
  absl::Status Split();
  void AppendWindow(int64_t begin, Batch& batch) const;

  CorpusOptions options_;
  std::vector<TokenId> tokens_;
  std::vector<Run> training_runs_;      // each at least one window long
  std::vector<int64_t> starts_before_;  // window starts in the runs before run i
  int64_t num_starts_ = 0;
  std::vector<int64_t> holdout_starts_;
  TokenId bos_ = kNoToken;
  int64_t num_documents_ = 0;
  int64_t num_bytes_ = 0;
  Digest digest_;
};

}  // namespace fedge

#endif  // FEDGE_TOOLS_PRETRAIN_CORPUS_H_
