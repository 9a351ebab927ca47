// The updates of a round, for rules that must see them one beside the other.
#ifndef FEDGE_SERVER_UPDATE_SOURCE_H_
#define FEDGE_SERVER_UPDATE_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/digest.h"
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

struct HeldUpdate {
  std::string node;
  uint64_t round = 0;
  uint64_t base_version = 0;
  Digest digest;
  double rms = 0;
  std::shared_ptr<AdmittedUpdate> update;  // null: it is read anew each time
};

// Gets an update as it was when it was added. Errors are those of reading.
using UpdateReader = std::function<absl::StatusOr<AdmittedUpdate>(const HeldUpdate&)>;

// With a reader: a few bytes an update. Without, in memory: 8 bytes for each value sent, 4 in dense
// updates.
class HeldUpdates : public UpdateSource {
 public:
  explicit HeldUpdates(UpdateReader reader = nullptr) : reader_(std::move(reader)) {}

  void Add(absl::string_view node, const Digest& digest, AdmittedUpdate update);  // once a round

  size_t size() const override { return updates_.size(); }
  absl::string_view node(size_t i) const override { return updates_[i].node; }
  absl::StatusOr<std::shared_ptr<const AdmittedUpdate>> Read(size_t i) const override;
  // Clips each to `ratio` times the median rms() of all.
  void ClipToMedian(double ratio);

 private:
  const UpdateReader reader_;
  std::vector<HeldUpdate> updates_;
  double limit_ = 0;  // of rms(), once they are clipped
};

}  // namespace fedge

#endif  // FEDGE_SERVER_UPDATE_SOURCE_H_
