// Checks of a configuration, written as a table: the first limit that is violated is what counts.
#ifndef FEDGE_SERVER_CONFIG_LIMITS_H_
#define FEDGE_SERVER_CONFIG_LIMITS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace fedge {

// Each check returns the value it was given. Written so that NaN fails.
class Limits {
 public:
  template <typename T>
  T AtLeast(absl::string_view field, T value, T low) {
    if (!(value >= low)) Fail(absl::StrCat(field, ": ", value, " is below ", low));
    return value;
  }
  template <typename T>
  T Above(absl::string_view field, T value, T low) {
    if (!(value > low)) Fail(absl::StrCat(field, ": ", value, " must be above ", low));
    return value;
  }
  template <typename T>
  T AtMost(absl::string_view field, T value, T high) {
    if (!(value <= high)) Fail(absl::StrCat(field, ": ", value, " is above ", high));
    return value;
  }
  template <typename T>
  T Within(absl::string_view field, T value, T low, T high) {
    return AtMost(field, AtLeast(field, value, low), high);
  }
  void Fail(std::string message) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(message);
  }
  const absl::Status& status() const { return status_; }  // InvalidArgument, or OK

 private:
  absl::Status status_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_CONFIG_LIMITS_H_
