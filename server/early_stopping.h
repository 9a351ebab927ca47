// Whether a run's held-out loss has stopped falling.
#ifndef FEDGE_SERVER_EARLY_STOPPING_H_
#define FEDGE_SERVER_EARLY_STOPPING_H_

#include <cstdint>
#include <limits>

namespace fedge {

// Follows from the losses alone, so that a restarted server notes those it stored.
class EarlyStopping {
 public:
  // `patience` 0: never.
  EarlyStopping(int64_t patience, double min_improvement)
      : patience_(patience), min_improvement_(min_improvement) {}

  // The loss of a version, in the order of versions; one that is not newer is ignored. A loss that
  // is not a number is no improvement.
  void Note(uint64_t version, double loss) {
    if (patience_ == 0 || reached_ || (any_ && version <= last_version_)) return;
    any_ = true;
    last_version_ = version;
    if (loss < best_ && loss <= best_ - min_improvement_) {
      best_ = loss;
      waited_ = 0;
      return;
    }
    reached_ = ++waited_ >= patience_;
  }
  // `patience` versions one after the other were not better by min_improvement than the best before
  // them. It stays so.
  bool reached() const { return reached_; }

 private:
  static constexpr double kNone = std::numeric_limits<double>::infinity();
  const int64_t patience_;
  const double min_improvement_;
  double best_ = kNone;
  int64_t waited_ = 0;
  uint64_t last_version_ = 0;
  bool any_ = false;
  bool reached_ = false;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_EARLY_STOPPING_H_
