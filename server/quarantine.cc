#include "server/quarantine.h"

#include "absl/strings/str_cat.h"

namespace fedge {

void Quarantine::Note(absl::string_view node, uint64_t round, bool accepted) {
  if (after_ == 0) return;
  const auto found = records_.find(node);
  if (accepted) {
    if (found != records_.end()) records_.erase(found);
    return;
  }
  Record& record = found != records_.end() ? found->second : records_[std::string(node)];
  ++record.rejected;
  if (record.rejected >= after_) record.last_round = round + static_cast<uint64_t>(rounds_);
}

bool Quarantine::Holds(absl::string_view node, uint64_t round) const {
  const auto found = records_.find(node);
  return found != records_.end() && round <= found->second.last_round;
}

std::string Quarantine::Reason(absl::string_view node, uint64_t round) const {
  if (!Holds(node, round)) return "";
  const Record& record = records_.find(node)->second;
  return absl::StrCat("quarantined until round ", record.last_round, ": ", record.rejected,
                      " updates in a row were rejected");
}

}  // namespace fedge
