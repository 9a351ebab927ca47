// Which versions of the protocol this program speaks. Devices and server tell each other with each
// check-in, in a header of the call, so that it can be read whatever becomes of the messages.
//
// The number goes up with a change that an older program cannot take part in. A release speaks at
// least the version of the release before it: a server is upgraded first, its devices one by one.
#ifndef FEDGE_COMMON_BASE_PROTOCOL_VERSION_H_
#define FEDGE_COMMON_BASE_PROTOCOL_VERSION_H_

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace fedge {

inline constexpr int kProtocolVersion = 1;
inline constexpr int kOldestProtocolVersion = 1;
inline constexpr char kProtocolHeader[] = "fedge-protocol";

// Whether this program speaks what a peer says in the header; without one it is of version 1. A
// newer peer decides for itself: it knows this version. FailedPrecondition names both and ends with
// `remedy`; InvalidArgument: no number.
inline absl::Status CheckProtocolVersion(absl::string_view said, absl::string_view remedy) {
  int version = 1;
  if (!said.empty() && !absl::SimpleAtoi(said, &version)) {
    return absl::InvalidArgumentError(absl::StrCat(kProtocolHeader, ": is not a number"));
  }
  if (version >= kOldestProtocolVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("protocol version ", version, ", and here versions ", kOldestProtocolVersion,
                   " to ", kProtocolVersion, " are spoken; ", remedy));
}

}  // namespace fedge

#endif  // FEDGE_COMMON_BASE_PROTOCOL_VERSION_H_
