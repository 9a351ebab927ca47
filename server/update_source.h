// The updates of a round, for rules that must see them one beside the other.
#ifndef FEDGE_SERVER_UPDATE_SOURCE_H_
#define FEDGE_SERVER_UPDATE_SOURCE_H_

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/update_admission.h"

namespace fedge {

// Sorted by node id, then round, which is what makes results independent of the order of arrivals.
class UpdateSource {
 public:
  virtual ~UpdateSource() = default;
  virtual size_t size() const = 0;
  virtual absl::string_view node(size_t i) const = 0;
  // May decode anew each time: callers go through all updates once a pass and keep none.
  virtual absl::StatusOr<std::shared_ptr<const AdmittedUpdate>> Read(size_t i) const = 0;
};

// In memory: 8 bytes for each value sent, 4 in dense updates.
class HeldUpdates : public UpdateSource {
 public:
  void Add(absl::string_view node, AdmittedUpdate update);  // once a node and round

  size_t size() const override { return updates_.size(); }
  absl::string_view node(size_t i) const override { return updates_[i].first; }
  absl::StatusOr<std::shared_ptr<const AdmittedUpdate>> Read(size_t i) const override {
    return updates_[i].second;
  }
  // Clips each to `ratio` times the median rms() of all.
  void ClipToMedian(double ratio);

 private:
  std::vector<std::pair<std::string, std::shared_ptr<AdmittedUpdate>>> updates_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_UPDATE_SOURCE_H_
