// From a person's files to token batches.
//
// Input: a JSONL file (*.jsonl, *.ndjson, *.json), a plain-text file (any other name), or a folder
// of both (searched recursively: *.jsonl, *.ndjson, *.txt, *.md; names that begin with a dot are
// left out). One JSONL line is one record: {"text": s} | {"prompt": s, "completion": s} |
// {"messages": [{role, content}...]}, with optional "node" (the natural client it belongs to),
// "id" (records of one id stay on one side of the train/validation split) and "slice" (a named part
// of held-out data that is measured by itself), each a string or an integer. A line that fits none
// of these is an error naming file, line and reason. A plain-text file becomes records at
// blank-line boundaries of at most ~2,000 bytes; its node is the file's name (in a folder: the path
// inside it). In a folder this goes for a JSONL file that names no node too. Without an "id" the id
// is the hash of the content, so that equal records stay together.
#ifndef FEDGE_COMMON_TRAINING_DATASET_H_
#define FEDGE_COMMON_TRAINING_DATASET_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/env.h"
#include "common/base/rng.h"
#include "common/model/chat_template.h"
#include "common/model/tokenizer.h"
#include "common/model/transformer.h"

namespace fedge {

// A stretch of a record; the loss falls on the trained stretches' tokens only, and only the marks
// of a chat template (`control`) are parsed for special tokens.
using RecordSpan = ChatSpan;

struct Record {
  std::string node;
  std::string id;
  std::string slice;
  std::vector<RecordSpan> spans;
  bool has_completion = false;  // from prompt/completion: usable for label scoring
};

struct DatasetLimits {
  uint64_t max_file_bytes = uint64_t{1} << 32;
  uint64_t max_records = 50'000'000;
  uint64_t max_line_bytes = 16u << 20;
};

// Records in file order (folder: sorted by path). `format` renders "messages". NotFound: no such
// file, no file of a known kind in the folder. InvalidArgument: a broken line. ResourceExhausted: a
// limit, which the message names.
absl::StatusOr<std::vector<Record>> ReadRecords(absl::string_view path, ChatFormat format,
                                                const DatasetLimits& limits, Env& env);

// A record as token ids; target[i] is the id to predict after token i, or kNoToken.
struct Example {
  std::vector<TokenId> tokens;
  std::vector<TokenId> targets;
  int64_t num_targets = 0;
  bool is_completion = false;  // of a prompt/completion or chat: the loss falls on the answer only
};

// Tokenizes as EncodeSpans does (prompt and completion apart, SentencePiece's dummy space at the
// very start only), BOS in front where the model adds one, EOS at the end (trained when the last
// span is) unless the last trained token ends the generation already. Cut into pieces of at most
// `max_length` (>= 2) tokens, each with that BOS: a long text continues in a next example, with
// every token the target of exactly one position; a prompt/completion or chat that does not fit
// loses its beginning. Examples without a target are left out.
std::vector<Example> MakeExamples(const Record& record, const Tokenizer& tokenizer,
                                  int64_t max_length);

// Which side of the split a record is on: a pure function of (seed, node, id), so that every device
// and every process agrees. `fraction` in [0, 1).
bool IsValidation(const Record& record, uint64_t seed, double fraction);

// What of a record names the slice of held-out data that it belongs to.
enum class SliceBy { kField = 0, kNode = 1, kCompletion = 2 };
// Its field "slice", its node, or its completion (a label) without the white space around it; empty
// when it has none. At most 64 bytes: longer names are cut, at a character's end.
std::string SliceName(const Record& record, SliceBy by);

// Draws batches from examples for ever: a new seeded permutation each epoch. Short examples are
// packed into rows of `length` tokens one after the other (each starts with BOS; attention runs
// across the row, as is usual for packing), padded with kNoToken targets. A row never holds the
// same example twice: it ends where an epoch does. The batch is as long as its longest row. An
// example longer than `length` is cut. Deterministic in (examples, seed).
class BatchSampler {
 public:
  // `completion_weight`: what a target of a completion counts, beside 1 of a plain text's.
  BatchSampler(std::vector<Example> examples, int64_t batch_size, int64_t length, Rng rng,
               float completion_weight = 1);
  Batch Next();
  bool empty() const { return examples_.empty(); }  // then Next() is a bug (CHECK)

 private:
  int64_t FillRow(Batch& batch, int64_t row);  // returns the tokens used
  std::vector<Example> examples_;
  std::vector<uint32_t> order_;
  size_t next_ = 0;
  int64_t batch_size_;
  int64_t length_;
  Rng rng_;
  float completion_weight_;
};

// All examples once, in order, grouped into padded batches of at most `batch_size` rows (for
// evaluation): one example a row, T = the longest of the batch.
std::vector<Batch> EvaluationBatches(absl::Span<const Example> examples, int64_t batch_size);

}  // namespace fedge

#endif  // FEDGE_COMMON_TRAINING_DATASET_H_
