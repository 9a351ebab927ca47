// Records to examples, and which side of the split they are on.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/training/dataset.h"

namespace fedge {
namespace {

// A record's ids with EOS, which of them are trained, and whether they begin with BOS.
struct Sequence {
  std::vector<TokenId> ids;
  std::vector<bool> trained;
  bool has_bos = false;
};

Sequence MakeSequence(const Record& record, const Tokenizer& tokenizer) {
  EncodedSpans encoded = EncodeSpans(record.spans, tokenizer);
  Sequence sequence;
  sequence.ids = std::move(encoded.ids);
  sequence.trained = std::move(encoded.trained);
  sequence.has_bos = tokenizer.adds_bos() && !sequence.ids.empty();
  const size_t content = sequence.ids.size() - (sequence.has_bos ? 1 : 0);
  if (content == 0 || tokenizer.eos() == kNoToken) return sequence;
  const auto last_trained = std::find(sequence.trained.rbegin(), sequence.trained.rend(), true) -
                            sequence.trained.rbegin();
  const size_t behind = sequence.ids.size() - static_cast<size_t>(last_trained);
  if (behind > 0 && tokenizer.IsEndOfGeneration(sequence.ids[behind - 1])) return sequence;
  sequence.ids.push_back(tokenizer.eos());
  sequence.trained.push_back(!record.spans.empty() && record.spans.back().trained);
  return sequence;
}

// The inputs ids[begin, end) with the targets behind them; `with_bos`: BOS in front, which predicts
// nothing because the token behind it stood elsewhere in the text.
Example Cut(const Sequence& sequence, size_t begin, size_t end, TokenId with_bos) {
  Example example;
  if (with_bos != kNoToken) {
    example.tokens.push_back(with_bos);
    example.targets.push_back(kNoToken);
  }
  for (size_t i = begin; i < end; ++i) {
    example.tokens.push_back(sequence.ids[i]);
    const bool scored = sequence.trained[i + 1];
    example.targets.push_back(scored ? sequence.ids[i + 1] : kNoToken);
    if (scored) ++example.num_targets;
  }
  return example;
}

}  // namespace

std::vector<Example> MakeExamples(const Record& record, const Tokenizer& tokenizer,
                                  int64_t max_length) {
  FEDGE_CHECK(max_length >= 2, "max_length ", max_length);
  const auto limit = static_cast<size_t>(max_length);
  const Sequence sequence = MakeSequence(record, tokenizer);
  std::vector<Example> examples;
  if (sequence.ids.size() < 2) return examples;
  const size_t inputs = sequence.ids.size() - 1;  // the last id is a target only
  const TokenId bos = sequence.has_bos ? tokenizer.bos() : kNoToken;
  const size_t room = limit - (sequence.has_bos ? 1 : 0);  // of a piece that starts in the middle
  const bool one_piece =
      std::any_of(record.spans.begin(), record.spans.end(),
                  [](const RecordSpan& span) { return !span.trained && !span.text.empty(); });
  const auto add = [&](size_t begin, size_t end) {
    Example example = Cut(sequence, begin, end, begin == 0 ? kNoToken : bos);
    example.is_completion = one_piece;
    if (example.num_targets > 0) examples.push_back(std::move(example));
  };
  if (one_piece && inputs > limit) {
    add(inputs - room, inputs);
    return examples;
  }
  for (size_t begin = 0; begin < inputs;) {
    const size_t end = std::min(inputs, begin + (begin == 0 ? limit : room));
    add(begin, end);
    begin = end;
  }
  return examples;
}

bool IsValidation(const Record& record, uint64_t seed, double fraction) {
  // Lengths in front keep ("ab", "c") and ("a", "bc") apart.
  const uint64_t hash = StableHash(
      absl::StrCat("validation:", seed, ":", record.node.size(), ":", record.node, ":", record.id));
  return static_cast<double>(hash >> 11) * 0x1.0p-53 < fraction;
}

std::string SliceName(const Record& record, SliceBy by) {
  constexpr size_t kMaxBytes = 64;
  absl::string_view name;
  switch (by) {
    case SliceBy::kField:
      name = record.slice;
      break;
    case SliceBy::kNode:
      name = record.node;
      break;
    case SliceBy::kCompletion:
      if (record.has_completion) name = record.spans.back().text;
      break;
  }
  name = absl::StripAsciiWhitespace(name);
  if (name.size() <= kMaxBytes) return std::string(name);
  size_t end = kMaxBytes;
  while (end > 0 && (static_cast<uint8_t>(name[end]) & 0xC0) == 0x80) --end;
  return std::string(name.substr(0, end));
}

}  // namespace fedge
