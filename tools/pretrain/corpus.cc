#include "tools/pretrain/corpus.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr int64_t kWindowsPerBlock = 16;

absl::string_view TrimLineFeeds(absl::string_view text) {
  while (!text.empty() && (text.front() == '\n' || text.front() == '\r')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.remove_suffix(1);
  return text;
}

std::vector<TokenId> EncodeDocument(const Tokenizer& tokenizer, absl::string_view text) {
  Tokenizer::EncodeOptions plain;
  plain.add_special = false;
  std::vector<TokenId> ids = tokenizer.Encode(text, plain);
  if (tokenizer.bos() != kNoToken) ids.insert(ids.begin(), tokenizer.bos());
  if (tokenizer.eos() != kNoToken) ids.push_back(tokenizer.eos());
  return ids;
}

}  // namespace

std::vector<absl::string_view> SplitDocuments(absl::string_view text) {
  std::vector<absl::string_view> documents;
  const auto add = [&documents](absl::string_view document) {
    document = TrimLineFeeds(document);
    if (!document.empty()) documents.push_back(document);
  };
  size_t begin = 0;
  size_t line = 0;
  while (line < text.size()) {
    const size_t feed = text.find('\n', line);
    const size_t end = feed == absl::string_view::npos ? text.size() : feed;
    const size_t next = feed == absl::string_view::npos ? text.size() : feed + 1;
    if (TrimLineFeeds(text.substr(line, end - line)) == "\f") {
      add(text.substr(begin, line - begin));
      begin = next;
    }
    line = next;
  }
  add(text.substr(begin));
  return documents;
}

absl::StatusOr<TokenCorpus> TokenCorpus::Read(absl::Span<const std::string> files,
                                              const Tokenizer& tokenizer,
                                              const CorpusOptions& options, ThreadPool& pool,
                                              Env& env) {
  if (options.length < 2 || options.holdout_fraction < 0 || options.holdout_fraction >= 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a window of ", options.length, " tokens with a held-out fraction of ",
                     options.holdout_fraction, "; at least 2 tokens and [0, 1) are possible"));
  }
  TokenCorpus corpus;
  corpus.options_ = options;
  corpus.bos_ = tokenizer.bos();
  std::vector<std::unique_ptr<MappedFile>> mappings;
  std::vector<absl::string_view> documents;
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> mapping, env.Map(file));
    for (const absl::string_view document : SplitDocuments(mapping->bytes())) {
      documents.push_back(document);
      corpus.num_bytes_ += static_cast<int64_t>(document.size());
    }
    mappings.push_back(std::move(mapping));
  }
  std::vector<std::vector<TokenId>> encoded(documents.size());
  pool.ParallelFor(static_cast<int64_t>(documents.size()), [&](int64_t i) {
    const size_t at = static_cast<size_t>(i);
    encoded[at] = EncodeDocument(tokenizer, documents[at]);
  });
  for (std::vector<TokenId>& ids : encoded) {
    corpus.tokens_.insert(corpus.tokens_.end(), ids.begin(), ids.end());
    ids = {};
  }
  corpus.num_documents_ = static_cast<int64_t>(documents.size());
  RETURN_IF_ERROR(corpus.Split());
  return corpus;
}

absl::Status TokenCorpus::Split() {
  const int64_t window = options_.length + 1;  // inputs and the last target
  const int64_t block = options_.length * kWindowsPerBlock;
  std::vector<int64_t> holdout;
  Run run;
  const auto end_run = [this, window, &run] {
    if (run.end - run.begin < window) return;
    training_runs_.push_back(run);
    starts_before_.push_back(num_starts_);
    num_starts_ += run.end - run.begin - window + 1;
  };
  for (int64_t begin = 0, index = 0; begin < num_tokens(); begin += block, ++index) {
    const int64_t end = std::min(num_tokens(), begin + block);
    Rng rng = Rng::Stream(options_.seed, "holdout", static_cast<uint64_t>(index));
    if (rng.Uniform() < options_.holdout_fraction) {
      for (int64_t at = begin; at + window <= end; at += options_.length) holdout.push_back(at);
      end_run();
      run = {end, end};
    } else {
      run.end = end;
    }
  }
  end_run();
  if (num_starts_ == 0 || (options_.holdout_fraction > 0 && holdout.empty())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the corpus has ", num_tokens(), " tokens, too few for windows of ", options_.length,
        " and a held-out fraction of ", options_.holdout_fraction, "; give more text"));
  }
  const int64_t count =
      std::min(options_.max_holdout_windows, static_cast<int64_t>(holdout.size()));
  for (int64_t i = 0; i < count; ++i) {
    holdout_starts_.push_back(
        holdout[static_cast<size_t>(i * static_cast<int64_t>(holdout.size()) / count)]);
  }
  Sha256 hash;
  hash.Update(absl::string_view(reinterpret_cast<const char*>(tokens_.data()),
                                tokens_.size() * sizeof(TokenId)));
  hash.Update(absl::string_view(reinterpret_cast<const char*>(training_runs_.data()),
                                training_runs_.size() * sizeof(Run)));
  digest_ = hash.Finish();
  return absl::OkStatus();
}

int64_t TokenCorpus::num_training_tokens() const {
  int64_t total = 0;
  for (const Run& run : training_runs_) total += run.end - run.begin;
  return total;
}

void TokenCorpus::AppendWindow(int64_t begin, Batch& batch) const {
  const auto first = tokens_.begin() + begin;
  const size_t row = batch.tokens.size();
  batch.tokens.insert(batch.tokens.end(), first, first + options_.length);
  batch.targets.insert(batch.targets.end(), first + 1, first + options_.length + 1);
  ++batch.batch_size;
  if (bos_ == kNoToken) return;
  for (size_t i = row; i < batch.targets.size(); ++i) {
    if (batch.targets[i] == bos_) batch.targets[i] = kNoToken;
  }
  if (batch.tokens[row] != bos_) {
    batch.tokens[row] = bos_;
    batch.targets[row] = kNoToken;
  }
}

Batch TokenCorpus::TrainingBatch(int64_t step, int64_t rows) const {
  Rng rng = Rng::Stream(options_.seed, "windows", static_cast<uint64_t>(step));
  Batch batch;
  batch.length = options_.length;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t draw = static_cast<int64_t>(rng.Below(static_cast<uint64_t>(num_starts_)));
    const auto after = std::upper_bound(starts_before_.begin(), starts_before_.end(), draw);
    const size_t run = static_cast<size_t>(after - starts_before_.begin()) - 1;
    AppendWindow(training_runs_[run].begin + draw - starts_before_[run], batch);
  }
  return batch;
}

std::vector<Batch> TokenCorpus::HoldoutBatches(int64_t rows) const {
  std::vector<Batch> batches;
  for (const int64_t start : holdout_starts_) {
    if (batches.empty() || batches.back().batch_size == rows) {
      batches.emplace_back();
      batches.back().length = options_.length;
    }
    AppendWindow(start, batches.back());
  }
  return batches;
}

}  // namespace fedge
