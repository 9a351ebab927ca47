#include "server/downlink.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr uint64_t kMaxPieces = 64;  // of a chain: each is a request

// How far from its start a value may go: half of what a delta can hold, since a change may lead
// from one end to the other; the step of the last change may go a bit further.
constexpr double kFarthestUnits = kMaxAdapterUnits / 2 - (1 << 26);

// Coordinates [begin, end), whose errors count 2^-shift times.
struct Run {
  size_t begin = 0;
  size_t end = 0;
  int shift = 0;
};

double Norm(absl::Span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return std::sqrt(sum);
}

// What counts is the product: an error of A reaches it through B, one of B through A
// (|B dA| and |dB A| in the Frobenius norm, for factors without a preferred direction). At the
// start B is next to nothing, and so is what a change of A does.
std::vector<Run> WeighedRuns(const LoraAdapter& adapter) {
  constexpr int kMaxShift = 4;
  std::vector<Run> runs;
  std::vector<double> weights;
  const std::vector<LoraModule>& modules = adapter.spec().modules();
  for (size_t m = 0; m < modules.size(); ++m) {
    const auto index = static_cast<int64_t>(m);
    const auto begin = static_cast<size_t>(modules[m].offset);
    const auto middle = begin + static_cast<size_t>(modules[m].a_size());
    const auto end = middle + static_cast<size_t>(modules[m].b_size());
    const double scale = adapter.spec().scale(modules[m]);
    runs.push_back({begin, middle});
    weights.push_back(scale * Norm(adapter.b(index)));
    runs.push_back({middle, end});
    weights.push_back(scale * Norm(adapter.a(index)));
  }
  double largest = 0;
  for (const double weight : weights) largest = std::max(largest, weight);
  for (size_t i = 0; i < runs.size(); ++i) {
    const double steps = largest > 0 ? -std::log2(std::max(weights[i] / largest, 1e-9)) : 0;
    runs[i].shift = std::clamp(static_cast<int>(std::lround(steps)), 0, kMaxShift);
  }
  return runs;
}

}  // namespace

Downlink::Downlink(const RunPlan& plan)
    : spec_(plan.lora),
      base_model_(plan.base_model),
      run_id_(plan.run_id),
      seed_(AdapterSeed(plan)),
      plan_(plan.downlink) {}

absl::StatusOr<AdapterState> Downlink::StateOfValues(const LoraAdapter& master,
                                                     uint64_t number) const {
  AdapterHeader header;
  header.encoding =
      plan_.encoding == DownlinkEncoding::kExact ? AdapterEncoding::kFp32 : AdapterEncoding::kFp16;
  header.to_version = number;
  header.base_model = base_model_;
  ASSIGN_OR_RETURN(std::string content, EncodeAdapterValues(spec_, header, master.values()));
  return AdapterState::FromValues(spec_, base_model_, std::move(content));
}

Downlink::Version Downlink::Pack(AdapterState state, std::string content) const {
  Version version;
  if (plan_.encoding == DownlinkEncoding::kDelta) version.snapshot = state.Serialize();
  version.content = std::make_shared<const std::string>(std::move(content));
  version.state = std::make_shared<const AdapterState>(std::move(state));
  return version;
}

absl::StatusOr<Downlink::Version> Downlink::Start(const LoraAdapter& initial) const {
  if (plan_.encoding == DownlinkEncoding::kDelta) {
    AdapterState seeded = AdapterState::FromSeed(spec_, base_model_, seed_);
    if (seeded.adapter().values() == initial.values()) {
      std::string nothing = seeded.EncodeWhole();
      return Pack(std::move(seeded), std::move(nothing));
    }
  }
  ASSIGN_OR_RETURN(AdapterState state, StateOfValues(initial, 0));
  std::string content = state.start_content();
  return Pack(std::move(state), std::move(content));
}

absl::StatusOr<Downlink::Version> Downlink::Resume(const LoraAdapter& master, uint64_t number,
                                                   absl::string_view snapshot) const {
  if (plan_.encoding == DownlinkEncoding::kDelta && !snapshot.empty()) {
    absl::StatusOr<AdapterState> state = AdapterState::Parse(spec_, base_model_, snapshot);
    if (!state.ok() || state->version() != number) {
      return absl::DataLossError(
          absl::StrCat("stored version ", number,
                       ": what the devices hold cannot be read: ", state.status().message()));
    }
    return Pack(*std::move(state), std::string());
  }
  ASSIGN_OR_RETURN(AdapterState state, StateOfValues(master, number));
  std::string content = state.start_content();
  return Pack(std::move(state), std::move(content));
}

std::vector<float> Downlink::ChangeTo(const AdapterState& held, const LoraAdapter& master) {
  std::vector<float> change(held.units().size());
  for (size_t i = 0; i < change.size(); ++i) {
    const double away =
        static_cast<double>(master.values()[i]) - static_cast<double>(held.start()[i]);
    const double farthest = kFarthestUnits * kAdapterUnit;
    change[i] =
        static_cast<float>(std::clamp(away, -farthest, farthest) - held.units()[i] * kAdapterUnit);
  }
  return change;
}

std::vector<int32_t> Downlink::ChooseChange(const AdapterState& state,
                                            const LoraAdapter& master) const {
  std::vector<float> change = ChangeTo(state, master);
  for (float& value : change) value = static_cast<float>(value / kAdapterUnit);
  const std::vector<Run> runs = plan_.plain ? std::vector<Run>() : WeighedRuns(master);
  for (const Run& run : runs) {
    for (size_t i = run.begin; i < run.end; ++i) change[i] = std::ldexp(change[i], -run.shift);
  }
  const ChangeHistogram histogram(change);
  const auto units_of = [&](const ChangeStep& step) {
    std::vector<int32_t> units = QuantizeChange(change, step);
    for (const Run& run : runs) {
      for (size_t i = run.begin; i < run.end; ++i) units[i] *= 1 << run.shift;
    }
    return units;
  };
  if (plan_.density > 0) return units_of(histogram.ForDensity(plan_.density, plan_.levels));
  return FitBudget(state, histogram, units_of);
}

// The estimate takes values for independent; the coder finds what is not, which buys more values.
std::vector<int32_t> Downlink::FitBudget(
    const AdapterState& state, const ChangeHistogram& histogram,
    absl::FunctionRef<std::vector<int32_t>(const ChangeStep&)> units_of) const {
  constexpr int kUsualAttempts = 4;
  constexpr int kAttempts = 40;  // until one fits; the last ones send next to nothing
  const double budget = plan_.bits_per_parameter * static_cast<double>(state.units().size());
  double target = budget;
  std::vector<int32_t> best;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::vector<int32_t> units = units_of(histogram.ForBudget(target));
    const double bits =
        8.0 * static_cast<double>(EncodeChange(state, 0, units).size() - kAdapterHeaderBytes);
    if (bits <= budget) {
      best = std::move(units);
      if (bits > 0.98 * budget) break;
    }
    if (attempt + 1 >= kUsualAttempts && !best.empty()) break;
    target *= std::clamp(budget / bits, 0.25, 2.0) * (bits > budget ? 0.995 : 1);
  }
  if (!best.empty()) return best;
  return units_of(histogram.ForDensity(0, 1));  // one value at least
}

std::string Downlink::EncodeChange(const AdapterState& to, uint64_t from,
                                   absl::Span<const int32_t> change) const {
  return EncodeAdapterDelta(spec_, HeaderOf(to, from), change);
}

AdapterHeader Downlink::HeaderOf(const AdapterState& to, uint64_t from) const {
  AdapterHeader header;
  header.from_version = from;
  header.to_version = to.version();
  header.base_model = base_model_;
  header.values_crc = to.crc();
  return header;
}

absl::StatusOr<Downlink::Version> Downlink::Next(const LoraAdapter& master, uint64_t number) const {
  if (plan_.encoding != DownlinkEncoding::kDelta) {
    ASSIGN_OR_RETURN(AdapterState values, StateOfValues(master, number));
    std::string content = values.start_content();
    return Pack(std::move(values), std::move(content));
  }
  std::shared_ptr<const AdapterState> held;
  {
    absl::MutexLock lock(&mutex_);
    held = state_;
  }
  FEDGE_CHECK(held != nullptr && held->version() + 1 == number);
  if (plan_.trellis) {
    absl::StatusOr<Version> version = NextByTrellis(*held, master);
    // Values too large for a group's magnitude (a run that diverges) go as levels, which are
    // bounded.
    if (!absl::IsOutOfRange(version.status())) return version;
  }
  const std::vector<int32_t> change = ChooseChange(*held, master);
  AdapterState next = *held;
  next.Advance(change);
  std::string content = EncodeChange(next, held->version(), change);
  return Pack(std::move(next), std::move(content));
}

absl::StatusOr<Downlink::Version> Downlink::NextByTrellis(const AdapterState& held,
                                                          const LoraAdapter& master) const {
  AdapterState next = held;
  const std::vector<float> change = ChangeTo(held, master);
  const absl::StatusOr<TrellisChange> coded = QuantizeToTrellis(
      spec_, held.version() + 1, plan_.bits_per_parameter, plan_.relaxation, change);
  RETURN_IF_ERROR(coded.status());
  for (size_t i = 0; i < change.size(); ++i) {
    if (std::abs(int64_t{held.units()[i]} + coded->units[i]) > kMaxAdapterUnits) {
      return absl::OutOfRangeError("a value is too far from where it started");
    }
  }
  next.Advance(coded->units);
  std::string content = EncodeAdapterTrellis(spec_, HeaderOf(next, held.version()), *coded);
  return Pack(std::move(next), std::move(content));
}

absl::StatusOr<Downlink::Version> Downlink::Return(const LoraAdapter& master, uint64_t number,
                                                   absl::string_view snapshot) const {
  if (plan_.encoding != DownlinkEncoding::kDelta) return Next(master, number);
  if (snapshot.empty()) {
    ASSIGN_OR_RETURN(AdapterState values, StateOfValues(master, number));
    std::string content = values.start_content();
    return Pack(std::move(values), std::move(content));
  }
  ASSIGN_OR_RETURN(const AdapterState old, AdapterState::Parse(spec_, base_model_, snapshot));
  std::shared_ptr<const AdapterState> held;
  {
    absl::MutexLock lock(&mutex_);
    held = state_;
  }
  FEDGE_CHECK(held->version() + 1 == number);
  if (old.start_version() == held->start_version() && old.start_crc() == held->start_crc()) {
    AdapterState next = *held;
    std::vector<int32_t> change(held->units().size());
    for (size_t i = 0; i < change.size(); ++i) change[i] = old.units()[i] - held->units()[i];
    next.Advance(change);
    std::string content = EncodeChange(next, held->version(), change);
    return Pack(std::move(next), std::move(content));
  }
  // It started elsewhere: no change leads there, so its values travel whole.
  AdapterHeader header;
  header.encoding = AdapterEncoding::kFp32;
  header.to_version = number;
  header.base_model = base_model_;
  ASSIGN_OR_RETURN(std::string content, EncodeAdapterValues(spec_, header, old.adapter().values()));
  ASSIGN_OR_RETURN(AdapterState values, AdapterState::FromValues(spec_, base_model_, content));
  return Pack(std::move(values), std::move(content));
}

void Downlink::ShowCandidate(const Version& candidate) {
  v1::AdapterSource source;
  source.set_run_id(run_id_);
  source.set_version(candidate.state->version());
  source.set_values_crc32c(candidate.state->crc());
  if (!candidate.manifest.manifest().empty()) *source.mutable_manifest() = candidate.manifest;
  const Content content{Sha256Of(*candidate.content), candidate.content};
  const bool is_whole = candidate.state->start_version() == candidate.state->version();
  if (!is_whole) source.set_held(true);
  v1::ContentRef& ref = is_whole ? *source.mutable_values() : *source.add_deltas();
  ref.set_sha256(content.digest.Raw());
  ref.set_size_bytes(content.bytes->size());
  absl::MutexLock lock(&mutex_);
  candidate_ = std::move(source);
  candidate_content_ = content;
}

void Downlink::HideCandidate() {
  absl::MutexLock lock(&mutex_);
  candidate_.reset();
  candidate_content_ = Content();
}

std::optional<v1::AdapterSource> Downlink::CandidateSource() {
  absl::MutexLock lock(&mutex_);
  return candidate_;
}

void Downlink::Serve(Version version) {
  Content content;
  if (!version.content->empty()) content = {Sha256Of(*version.content), version.content};
  Content start;
  if (!version.state->start_content().empty()) {
    const std::string& bytes = version.state->start_content();
    start = {Sha256Of(bytes), std::make_shared<const std::string>(bytes)};
  }
  absl::MutexLock lock(&mutex_);
  const AdapterState& next = *version.state;
  if (next.start_version() == next.version()) {  // nothing before leads here
    links_.clear();
    crcs_.clear();
  } else if (content.bytes != nullptr) {
    links_.push_back({next.version(), std::move(content)});
  }
  crcs_[next.version()] = next.crc();
  crcs_[next.start_version()] = next.start_crc();
  start_ = std::move(start);
  manifest_ = std::move(version.manifest);
  candidate_.reset();
  candidate_content_ = Content();
  state_ = std::move(version.state);
  merged_.clear();
  whole_.reset();
  DropOldLinks();
}

void Downlink::DropOldLinks() {
  uint64_t bytes = 0;
  for (const Link& link : links_) bytes += link.content.bytes->size();
  while (!links_.empty() && (bytes > kMaxDownlinkBytes || links_.size() > kMaxPieces)) {
    bytes -= links_.front().content.bytes->size();
    links_.pop_front();
  }
}

void Downlink::AddHistory(const std::vector<std::string>& contents) {
  absl::MutexLock lock(&mutex_);
  std::deque<Link> links;
  for (const std::string& bytes : contents) {
    const absl::StatusOr<AdapterHeader> header = ReadAdapterHeader(bytes);
    if (!header.ok() || !IsDelta(header->encoding) ||
        header->from_version + 1 != header->to_version) {
      links.clear();  // values, or what cannot be read: what came before leads nowhere
      continue;
    }
    if (!links.empty() && links.back().to != header->from_version) links.clear();
    crcs_[header->to_version] = header->values_crc;
    links.push_back(
        {header->to_version, {Sha256Of(bytes), std::make_shared<const std::string>(bytes)}});
  }
  if (links.empty() || links.back().to != state_->version() ||
      state_->version() == state_->start_version()) {
    return;
  }
  links_ = std::move(links);
  DropOldLinks();
}

Downlink::Content Downlink::Merge(const AdapterState& to, uint64_t from,
                                  const Contents& chain) const {
  std::vector<int32_t> sum(to.units().size());
  for (const Content& link : chain) {
    const auto added = AddAdapterDelta(spec_, base_model_, *link.bytes, absl::MakeSpan(sum));
    FEDGE_CHECK(added.ok(), added.status().message());  // our own
  }
  std::string bytes = EncodeChange(to, from, sum);
  const Digest digest = Sha256Of(bytes);
  return {digest, std::make_shared<const std::string>(std::move(bytes))};
}

void Downlink::Remember(uint64_t from, const Content& content) {
  uint64_t bytes = content.bytes->size();
  for (const auto& [version, merged] : merged_) bytes += merged.bytes->size();
  if (bytes > kMaxDownlinkBytes) merged_.clear();
  merged_[from] = content;
}

Downlink::Content Downlink::Whole() {
  std::shared_ptr<const AdapterState> state;
  {
    absl::MutexLock lock(&mutex_);
    if (whole_) return *whole_;
    state = state_;
  }
  Content whole;
  if (state->version() != state->start_version()) {
    std::string bytes = state->EncodeWhole();
    whole.digest = Sha256Of(bytes);
    whole.bytes = std::make_shared<const std::string>(std::move(bytes));
  }
  absl::MutexLock lock(&mutex_);
  if (state == state_) whole_ = whole;
  return whole;
}

Downlink::Contents Downlink::Cheapest(uint64_t from) {
  std::shared_ptr<const AdapterState> state;
  Contents chain;
  std::optional<Content> merged;
  {
    absl::MutexLock lock(&mutex_);
    state = state_;
    for (const Link& link : links_) {
      if (link.to > from) chain.push_back(link.content);
    }
    const auto found = merged_.find(from);
    if (found != merged_.end()) merged = found->second;
  }
  if (from == state->version()) return {};
  Contents best = {Whole()};
  if (chain.size() != state->version() - from) return best;  // the first links are gone
  if (!merged && chain.size() > 1 && from != state->start_version()) {
    merged = Merge(*state, from, chain);
    absl::MutexLock lock(&mutex_);
    if (state == state_) Remember(from, *merged);
  }
  const auto total = [](const Contents& contents) {
    uint64_t bytes = 0;
    for (const Content& content : contents) bytes += content.bytes->size();
    return bytes;
  };
  if (merged && total({*merged}) < total(best)) best = {*merged};
  if (total(chain) < total(best)) best = std::move(chain);
  return best;
}

std::optional<v1::AdapterSource> Downlink::Offer(uint64_t version, const v1::HeldAdapter& held) {
  v1::AdapterSource source;
  source.set_run_id(run_id_);
  source.set_version(version);
  bool has_start = false;
  bool has_version = false;
  Content start;
  {
    absl::MutexLock lock(&mutex_);
    if (state_->version() != version) return std::nullopt;
    source.set_values_crc32c(state_->crc());
    if (!manifest_.manifest().empty()) *source.mutable_manifest() = manifest_;
    start = start_;
    has_start = held.run_id() == run_id_ && held.start_version() == state_->start_version() &&
                held.start_crc32c() == state_->start_crc();
    const auto crc = crcs_.find(held.version());
    has_version = has_start && held.version() <= version && crc != crcs_.end() &&
                  crc->second == held.values_crc32c();
  }
  Contents deltas;
  if (has_version) {
    deltas = Cheapest(held.version());
  } else if (const Content whole = Whole(); whole.bytes != nullptr) {
    deltas = {whole};
  } else {
    has_start = false;  // there is no change that would lead back to the start
  }
  const auto name = [](const Content& content, v1::ContentRef& ref) {
    ref.set_sha256(content.digest.Raw());
    ref.set_size_bytes(content.bytes->size());
  };
  if (has_start) {
    source.set_held(true);
  } else if (start.bytes != nullptr) {
    name(start, *source.mutable_values());
  } else {
    source.set_seed(seed_);
  }
  for (const Content& delta : deltas) name(delta, *source.add_deltas());
  absl::MutexLock lock(&mutex_);
  if (state_->version() != version) return std::nullopt;  // the deltas may lead to another one
  return source;
}

std::shared_ptr<const std::string> Downlink::Find(const Digest& digest) {
  absl::MutexLock lock(&mutex_);
  if (start_.bytes != nullptr && start_.digest == digest) return start_.bytes;
  if (candidate_ && candidate_content_.digest == digest) return candidate_content_.bytes;
  if (whole_ && whole_->bytes != nullptr && whole_->digest == digest) return whole_->bytes;
  for (const Link& link : links_) {
    if (link.content.digest == digest) return link.content.bytes;
  }
  for (const auto& [from, content] : merged_) {
    if (content.digest == digest) return content.bytes;
  }
  return nullptr;
}

uint64_t Downlink::version() {
  absl::MutexLock lock(&mutex_);
  return state_->version();
}

std::shared_ptr<const AdapterState> Downlink::state() {
  absl::MutexLock lock(&mutex_);
  return state_;
}

LoraAdapter Downlink::served() {
  absl::MutexLock lock(&mutex_);
  return state_->adapter();
}

}  // namespace fedge
