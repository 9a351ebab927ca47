#include "tools/simulate/update_watch.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "client/forwarding_link.h"
#include "common/base/status.h"
#include "common/codec/update_codec.h"

namespace fedge {
namespace {

class WatchedLink : public ForwardingLink {
 public:
  WatchedLink(std::unique_ptr<FederationLink> link, UploadWatcher watcher)
      : ForwardingLink(std::move(link)), watcher_(std::move(watcher)) {}

  absl::StatusOr<v1::UploadReceipt> Upload(const v1::UploadId& id, const v1::TaskMetrics& metrics,
                                           absl::string_view bytes, uint64_t offset) override {
    RETURN_IF_ERROR(watcher_(id, bytes));
    return link_->Upload(id, metrics, bytes, offset);
  }

 private:
  const UploadWatcher watcher_;
};

// "attn_q" of "blk.3.attn_q.weight".
std::string KindOf(const LoraModule& module) {
  std::vector<std::string> parts = absl::StrSplit(module.tensor, '.');
  if (parts.size() > 1 && parts.back() == "weight") parts.pop_back();
  return parts.back();
}

}  // namespace

std::unique_ptr<FederationLink> WatchUploads(std::unique_ptr<FederationLink> link,
                                             UploadWatcher watcher) {
  return std::make_unique<WatchedLink>(std::move(link), std::move(watcher));
}

void AnatomySum::Note(absl::string_view update) {
  const absl::StatusOr<UpdateHeader> header = ReadUpdateHeader(update);
  if (!header.ok()) return;
  const absl::StatusOr<SliceLayout> slice = SliceLayout::Create(spec_, header->slice);
  if (!slice.ok()) return;
  const absl::StatusOr<UpdateAnatomy> anatomy = AnatomyOf(update, spec_.layout_hash(), *slice);
  if (!anatomy.ok()) return;
  absl::MutexLock lock(&mutex_);
  sum_.Add(*anatomy);
}

std::optional<UpdateSections> AnatomySum::Sections() const {
  absl::MutexLock lock(&mutex_);
  if (sum_.parameters == 0) return std::nullopt;
  UpdateSections sections;
  const double bits = sum_.total_bits();
  sections.header = sum_.header_bits / bits;
  sections.positions = sum_.position_bits / bits;
  sections.scales = sum_.scale_bits / bits;
  sections.values = sum_.value_bits / bits;
  const auto parameters = static_cast<double>(sum_.parameters);
  sections.bits_per_parameter = bits / parameters;
  sections.floor_bits_per_parameter = sum_.floor_bits / parameters;
  uint64_t a = 0;
  uint64_t all = 0;
  std::map<std::string, uint64_t> by_kind;
  for (size_t i = 0; i < sum_.modules.size(); ++i) {
    const UpdateAnatomy::Module& module = sum_.modules[i];
    a += module.a;
    all += module.a + module.b;
    by_kind[KindOf(spec_.modules()[i])] += module.a + module.b;
  }
  if (all == 0) return sections;
  sections.a_share = static_cast<double>(a) / static_cast<double>(all);
  for (const auto& [kind, sent] : by_kind) {
    sections.tensors.emplace_back(kind, static_cast<double>(sent) / static_cast<double>(all));
  }
  std::stable_sort(sections.tensors.begin(), sections.tensors.end(),
                   [](const auto& x, const auto& y) { return x.second > y.second; });
  return sections;
}

}  // namespace fedge
