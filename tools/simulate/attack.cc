#include "tools/simulate/attack.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/task.h"
#include "common/base/digest.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "common/codec/update_header.h"  // seals updates that EncodeUpdate refuses to make

namespace fedge {
namespace {

struct Attack {
  absl::string_view name;
  AttackKind kind;
  double strength;
};
constexpr Attack kAttacks[] = {{"none", AttackKind::kNone, 0},
                               {"nan", AttackKind::kNan, 0},
                               {"inf", AttackKind::kInf, 0},
                               {"sign-flip", AttackKind::kSignFlip, 1},
                               {"scale", AttackKind::kScale, 100},
                               {"noise", AttackKind::kNoise, 10},
                               {"alie", AttackKind::kAlie, 1},
                               {"inner-product", AttackKind::kInnerProduct, 1},
                               {"label-flip", AttackKind::kLabelFlip, 0}};

double DefaultStrength(AttackKind kind) {
  return std::find_if(std::begin(kAttacks), std::end(kAttacks),
                      [&](const Attack& attack) { return attack.kind == kind; })
      ->strength;
}

// What a half holds.
float Encodable(double value) { return static_cast<float>(std::clamp(value, -65504.0, 65504.0)); }

void Scale(double factor, std::vector<float>& values) {
  for (float& value : values) value = Encodable(factor * static_cast<double>(value));
}

double Norm(absl::Span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(sum);
}

// An update with correct checksums, each value the half `bits`. A seeded support has no positions
// that would have to be right.
absl::StatusOr<std::string> MakeNonFinite(const UpdateHeader& header, const SliceLayout& layout,
                                          uint16_t bits) {
  const std::vector<float> zeros(static_cast<size_t>(layout.adapter_size()));
  const EncodeOptions options{
      .support = UpdateSupport::kSeeded, .density = 0.01, .value_bits = 16, .seed = 1};
  ASSIGN_OR_RETURN(std::string bytes, EncodeUpdate(zeros, layout, header, options, {}));
  ASSIGN_OR_RETURN(const UpdateHeader sealed, ReadUpdateHeader(bytes));
  for (size_t at = kUpdateHeaderBytes; at + 1 < bytes.size(); at += 2) {
    bytes[at] = static_cast<char>(bits & 0xFF);
    bytes[at + 1] = static_cast<char>(bits >> 8);
  }
  SealUpdate(sealed, &bytes);
  return bytes;
}

bool IsAnswer(const Record& record) {
  return record.has_completion && !record.spans.empty() && record.spans.back().trained;
}

}  // namespace

absl::StatusOr<AttackKind> ParseAttackKind(absl::string_view name) {
  for (const Attack& attack : kAttacks) {
    if (attack.name == name) return attack.kind;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--attack: '", name, "' is not known; use ", AttackNames()));
}

std::string AttackNames() {
  return absl::StrJoin(kAttacks, ", ", [](std::string* out, const Attack& attack) {
    absl::StrAppend(out, attack.name);
  });
}

// Hands on what an honest participant does, and replaces the updates of an attacker.
class Adversary::Link : public FederationLink {
 public:
  Link(Adversary& adversary, std::string node, std::unique_ptr<FederationLink> link)
      : adversary_(adversary), node_(std::move(node)), link_(std::move(link)) {}

  absl::StatusOr<v1::CheckInResponse> CheckIn(const v1::CheckInRequest& request) override {
    absl::StatusOr<v1::CheckInResponse> response = link_->CheckIn(request);
    if (response.ok() && response->has_assignment()) assignment_ = response->assignment();
    return response;
  }
  absl::Status Download(const v1::DownloadRequest& request, const ChunkSink& sink) override {
    return link_->Download(request, sink);
  }
  absl::StatusOr<v1::QueryUploadResponse> QueryUpload(
      const v1::QueryUploadRequest& request) override {
    return link_->QueryUpload(request);
  }
  absl::Status Report(const v1::ReportRequest& request) override { return link_->Report(request); }

  absl::StatusOr<v1::UploadReceipt> Upload(const v1::UploadId& id, const v1::TaskMetrics& metrics,
                                           absl::string_view bytes, uint64_t offset) override {
    ASSIGN_OR_RETURN(const LoraSpec spec, LoraSpecFromProto(assignment_.lora()));
    ASSIGN_OR_RETURN(const UpdateHeader header, ReadUpdateHeader(bytes));
    ASSIGN_OR_RETURN(const SliceLayout layout, SliceLayout::Create(spec, header.slice));
    ASSIGN_OR_RETURN(const DecodedUpdate update, DecodeUpdate(bytes, spec.layout_hash(), layout));
    Change change(static_cast<size_t>(layout.adapter_size()));
    AddUpdate(update, layout, 1, absl::MakeSpan(change));
    if (!adversary_.Attacks(node_)) {
      adversary_.Observe(node_, id.round(), std::move(change));
      return link_->Upload(id, metrics, bytes, offset);
    }
    EncodeOptions codec;
    codec.support = header.support;
    codec.density = static_cast<double>(header.num_nonzero) /
                    static_cast<double>(std::max<uint64_t>(header.num_parameters, 1));
    codec.value_bits = header.value_bits;
    codec.seed = header.seed;
    if (header.support == UpdateSupport::kTrellis) codec.budget_bytes = bytes.size();
    ASSIGN_OR_RETURN(const std::string forged,
                     adversary_.Forge(node_, header, layout, codec, std::move(change)));
    v1::UploadId its_id = id;
    its_id.set_sha256(Sha256Of(forged).Raw());
    its_id.set_size_bytes(forged.size());
    return link_->Upload(its_id, metrics, forged, 0);
  }

 private:
  Adversary& adversary_;
  const std::string node_;
  const std::unique_ptr<FederationLink> link_;
  v1::Assignment assignment_;
};

Adversary::Adversary(const AttackOptions& options, absl::Span<const NodeRecords> nodes)
    : options_([&] {
        AttackOptions filled = options;
        if (filled.strength == 0) filled.strength = DefaultStrength(options.kind);
        return filled;
      }()),
      nodes_(nodes.size()) {
  if (options_.kind == AttackKind::kNone) return;
  std::vector<std::string> ids;
  for (const NodeRecords& node : nodes) ids.push_back(node.node);
  std::sort(ids.begin(), ids.end());
  Rng rng = Rng::Stream(options_.seed, "attackers");
  rng.Shuffle(absl::MakeSpan(ids));
  const double count = std::round(options_.attackers * static_cast<double>(ids.size()));
  ids.resize(std::min(ids.size(), static_cast<size_t>(count)));
  attackers_.insert(ids.begin(), ids.end());
}

void Adversary::PoisonData(std::vector<NodeRecords>& nodes) const {
  if (options_.kind != AttackKind::kLabelFlip) return;
  std::set<std::string> answers;
  for (const NodeRecords& node : nodes) {
    for (const Record& record : node.records) {
      if (IsAnswer(record)) answers.insert(record.spans.back().text);
    }
  }
  for (NodeRecords& node : nodes) {
    if (!Attacks(node.node)) continue;
    for (Record& record : node.records) {
      if (!IsAnswer(record)) continue;
      auto next = std::next(answers.find(record.spans.back().text));
      record.spans.back().text = next == answers.end() ? *answers.begin() : *next;
    }
  }
}

std::unique_ptr<FederationLink> Adversary::Wrap(const std::string& node,
                                                std::unique_ptr<FederationLink> link) {
  if (options_.kind == AttackKind::kNone || options_.kind == AttackKind::kLabelFlip) return link;
  return std::make_unique<Link>(*this, node, std::move(link));
}

void Adversary::Observe(const std::string& node, uint64_t round, Change change) {
  absl::MutexLock lock(&mutex_);
  if (round != round_) honest_.clear();
  round_ = round;
  honest_[node] = std::move(change);
}

std::pair<Adversary::Change, Adversary::Change> Adversary::HonestMoments() const {
  absl::MutexLock lock(&mutex_);
  if (honest_.empty()) return {};
  Change mean(honest_.begin()->second.size());
  Change deviation(mean.size());
  const auto count = static_cast<double>(honest_.size());
  for (size_t i = 0; i < mean.size(); ++i) {
    double sum = 0;
    double squares = 0;
    for (const auto& [node, change] : honest_) {
      sum += static_cast<double>(change[i]);
      squares += static_cast<double>(change[i]) * static_cast<double>(change[i]);
    }
    mean[i] = static_cast<float>(sum / count);
    deviation[i] =
        static_cast<float>(std::sqrt(std::max(0.0, squares / count - sum * sum / count / count)));
  }
  return {std::move(mean), std::move(deviation)};
}

// The z with Phi(z) = (n - m - s) / (n - m), s = floor(n / 2 + 1) - m supporters: Baruch et al.
// 2019, equation 3.
double Adversary::AlieQuantile() const {
  const auto honest = static_cast<double>(nodes_ - attackers_.size());
  const double supporters =
      std::floor(static_cast<double>(nodes_) / 2 + 1) - static_cast<double>(attackers_.size());
  const double wanted = std::clamp((honest - supporters) / honest, 0.5, 0.999);
  double low = 0;
  double high = 4;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (std::erfc(-middle / std::sqrt(2.0)) / 2 < wanted ? low : high) = middle;
  }
  return low;
}

absl::StatusOr<std::string> Adversary::Forge(const std::string& node, const UpdateHeader& header,
                                             const SliceLayout& layout, const EncodeOptions& codec,
                                             Change own) const {
  switch (options_.kind) {
    case AttackKind::kNan:
      return MakeNonFinite(header, layout, 0x7E00);
    case AttackKind::kInf:
      return MakeNonFinite(header, layout, 0x7C00);
    case AttackKind::kSignFlip:
      Scale(-options_.strength, own);
      break;
    case AttackKind::kScale:
      Scale(options_.strength, own);
      break;
    case AttackKind::kNoise: {
      Rng rng = Rng::Stream(options_.seed, absl::StrCat("noise/", node), header.round);
      const double size = static_cast<double>(std::max<int64_t>(layout.size(), 1));
      const double scale = options_.strength * Norm(own) / std::sqrt(size);
      for (float& value : own) value = Encodable(scale * rng.Normal());
      break;
    }
    case AttackKind::kAlie:
    case AttackKind::kInnerProduct: {
      const auto [mean, deviation] = HonestMoments();
      if (mean.size() != own.size()) break;
      const bool alie = options_.kind == AttackKind::kAlie;
      const double of_mean = alie ? 1 : -options_.strength;
      const double of_deviation = alie ? -options_.strength * AlieQuantile() : 0;
      for (size_t i = 0; i < own.size(); ++i) {
        own[i] = Encodable(of_mean * static_cast<double>(mean[i]) +
                           of_deviation * static_cast<double>(deviation[i]));
      }
      break;
    }
    case AttackKind::kNone:
    case AttackKind::kLabelFlip:
      break;
  }
  return EncodeUpdate(own, layout, header, codec, {});
}

}  // namespace fedge
