// How toy devices reach the server, and where they write down what they were told.
#ifndef FEDGE_TESTS_ROBUSTNESS_TOY_LINK_H_
#define FEDGE_TESTS_ROBUSTNESS_TOY_LINK_H_

#include <memory>
#include <string>

#include "client/federation_link.h"
#include "client/transfer.h"

namespace fedge::robustness {

// A server that was killed is back within milliseconds.
inline constexpr RetryPolicy kImpatient = {.max_attempts = 8,
                                           .first_pause = absl::Milliseconds(5),
                                           .longest_pause = absl::Milliseconds(40)};

// To the server on a port of this machine, without TLS.
std::unique_ptr<FederationLink> ConnectTo(int port);

// One write call a line: lines of threads, and of a process that is killed, stay whole.
class Journal {
 public:
  explicit Journal(const std::string& path);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;
  void Write(const std::string& line);

 private:
  const int fd_;
};

}  // namespace fedge::robustness

#endif  // FEDGE_TESTS_ROBUSTNESS_TOY_LINK_H_
