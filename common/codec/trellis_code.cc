#include "common/codec/trellis_code.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "common/base/status.h"
#include "common/codec/position_coder.h"
#include "common/codec/trellis_rates.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/codec/trellis_code.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace fedge {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// One step of the search. From the scores of all states `before` and, for each pair of states that
// one predecessor leads to, the sum of its even state's pattern: the scores `after`, and for each
// pair a bit in `upper`: its better predecessor is the one in the upper half. Sums are those of
// single additions in every target.
void Advance(const float* HWY_RESTRICT tables, const int32_t* HWY_RESTRICT index, int table_count,
             const float* HWY_RESTRICT before, float* HWY_RESTRICT after,
             uint8_t* HWY_RESTRICT upper) {
  constexpr int kPairs = 128;
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const int lanes = static_cast<int>(hn::Lanes(d));
  uint64_t words[kPairs / 64] = {};
  for (int p = 0; p < kPairs; p += lanes) {
    auto sum = hn::GatherIndex(d, tables, hn::LoadU(di, index + p));
    for (int t = 1; t < table_count; ++t) {
      sum = hn::Add(sum, hn::GatherIndex(d, tables, hn::LoadU(di, index + t * kPairs + p)));
    }
    const auto low = hn::LoadU(d, before + p);
    const auto high = hn::LoadU(d, before + kPairs + p);
    const auto is_upper = hn::Lt(low, high);
    const auto best = hn::IfThenElse(is_upper, high, low);
    hn::StoreInterleaved2(hn::Add(best, sum), hn::Sub(best, sum), d, after + 2 * p);
    uint8_t bits[8] = {};
    hn::StoreMaskBits(d, is_upper, bits);
    uint64_t word = 0;
    std::memcpy(&word, bits, sizeof(word));
    words[p / 64] |= word << (p % 64);
  }
  std::memcpy(upper, words, sizeof(words));
}

}  // namespace HWY_NAMESPACE
}  // namespace fedge
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedge {
namespace {

HWY_EXPORT(Advance);

constexpr int kPairs = kTrellisStates / 2;
constexpr int kTableBits = 8;
constexpr int kTableSize = 1 << kTableBits;
constexpr uint64_t kWindow = 4096;     // steps between two decisions
constexpr uint64_t kRebaseSteps = 16;  // at least 8, after which every state is reachable
constexpr size_t kDecisionBytes = kPairs / 8;
constexpr float kUnreachable = -1e30f;

// table[c] = sum over j of +-values[j], plus where bit j of c is set; missing values count as 0.
void FillTable(absl::Span<const float> values, float* table) {
  float total = 0;
  for (const float value : values) total += value;
  table[0] = -total;
  for (int bit = 0; bit < kTableBits; ++bit) {
    const int size = 1 << bit;
    const float twice =
        static_cast<size_t>(bit) < values.size() ? 2 * values[static_cast<size_t>(bit)] : 0.0f;
    for (int c = 0; c < size; ++c) table[size + c] = table[c] + twice;
  }
}

constexpr int kTables = kMaxTrellisPeriod / kTableBits;

class PathSearch {
 public:
  PathSearch(const TrellisCode& code, absl::Span<const TrellisPart> parts)
      : parts_(parts),
        tables_(static_cast<size_t>(kTables * kTableSize)),
        index_(static_cast<size_t>(kTables * kPairs)),
        decisions_(kWindow * kDecisionBytes) {
    for (int t = 0; t < kTables; ++t) {
      for (int p = 0; p < kPairs; ++p) {
        const uint64_t pattern = code.pattern(static_cast<uint32_t>(2 * p));
        const auto byte = static_cast<int32_t>((pattern >> (t * kTableBits)) & (kTableSize - 1));
        index_[static_cast<size_t>(t * kPairs + p)] = t * kTableSize + byte;
      }
    }
  }

  std::vector<uint8_t> Run() {
    uint64_t steps = 0;
    for (const TrellisPart& part : parts_) steps += TrellisSteps(part.values.size(), part.period);
    std::vector<uint8_t> path(steps);
    uint32_t state = 0;
    for (uint64_t begin = 0; begin < path.size(); begin += kWindow) {
      const uint64_t end = std::min<uint64_t>(begin + kWindow, path.size());
      state = RunWindow(begin, end, state, path);
    }
    return path;
  }

 private:
  // Fills in path[begin, end) from `state` and returns the state at its end.
  uint32_t RunWindow(uint64_t begin, uint64_t end, uint32_t state, std::vector<uint8_t>& path) {
    scores_.fill(kUnreachable);
    scores_[state] = 0;
    for (uint64_t step = begin; step < end; ++step) {
      if (step > begin && (step - begin) % kRebaseSteps == 0) Rebase();
      const int table_count = FillTables();
      HWY_DYNAMIC_DISPATCH(Advance)
      (tables_.data(), index_.data(), table_count, scores_.data(), next_.data(),
       &decisions_[(step - begin) * kDecisionBytes]);
      scores_.swap(next_);
    }
    const auto best = std::max_element(scores_.begin(), scores_.end());
    const auto last = static_cast<uint32_t>(best - scores_.begin());
    uint32_t at = last;
    for (uint64_t step = end; step-- > begin;) {
      path[step] = static_cast<uint8_t>(at & 1);
      const uint32_t pair = at >> 1;
      const uint8_t byte = decisions_[(step - begin) * kDecisionBytes + pair / 8];
      at = pair + (((byte >> (pair % 8)) & 1) != 0 ? kPairs : 0);
    }
    return last;
  }

  // Only differences matter: sums over large values must not swallow the small ones behind them.
  void Rebase() {
    const float base = scores_[0];
    for (float& score : scores_) score -= base;
  }

  // Of the next values; returns how many tables their pattern takes.
  int FillTables() {
    while (used_ == parts_[part_].values.size()) {
      ++part_;
      used_ = 0;
    }
    const TrellisPart& part = parts_[part_];
    const absl::Span<const float> next =
        part.values.subspan(used_, static_cast<size_t>(part.period));
    used_ += next.size();
    const int table_count = (part.period + kTableBits - 1) / kTableBits;
    for (int t = 0; t < table_count; ++t) {
      const size_t first = std::min<size_t>(static_cast<size_t>(t * kTableBits), next.size());
      FillTable(next.subspan(first, kTableBits), &tables_[static_cast<size_t>(t * kTableSize)]);
    }
    return table_count;
  }

  const absl::Span<const TrellisPart> parts_;
  size_t part_ = 0;             // where the search is
  size_t used_ = 0;             // values of it
  std::vector<float> tables_;   // [table][256]
  std::vector<int32_t> index_;  // [table][pair]: where its pattern's part is in the tables
  std::array<float, kTrellisStates> scores_, next_;
  std::vector<uint8_t> decisions_;  // [step of the window][pair], a bit each
};

}  // namespace

TrellisCode::TrellisCode(uint64_t seed) {
  for (uint32_t pair = 0; pair < kPairs; ++pair) {
    patterns_[2 * pair] = StreamNumber(seed, pair);
    patterns_[2 * pair + 1] = ~patterns_[2 * pair];
  }
}

std::vector<uint8_t> FindTrellisPath(const TrellisCode& code, absl::Span<const TrellisPart> parts) {
  for (const TrellisPart& part : parts) {
    FEDGE_CHECK(part.period >= 1 && part.period <= kMaxTrellisPeriod, "a period of ", part.period);
  }
  return PathSearch(code, parts).Run();
}

}  // namespace fedge
#endif  // HWY_ONCE
