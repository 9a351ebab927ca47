// A file from a plain HTTP server on the local network: a cache, or another device. No TLS and no
// trust: whoever asks knows the content's SHA-256 and checks it (client/model_download.h).
#ifndef FEDGE_CLIENT_HTTP_DOWNLOAD_H_
#define FEDGE_CLIENT_HTTP_DOWNLOAD_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fedge {

struct HttpUrl {
  std::string host, port, path;  // path begins with '/'
};

// InvalidArgument unless "http://host[:port]/path" without spaces or control characters.
absl::StatusOr<HttpUrl> ParseHttpUrl(absl::string_view url);

// Hands the file's bytes from `offset` on to `sink` as they come. A server that does not know
// ranges is read from the start, and what is not wanted is left out. Unavailable: cannot be
// reached, went silent for 30 s, or broke off; NotFound; FailedPrecondition: another answer, a
// redirection for one. An error of `sink` ends it with that error.
absl::Status HttpDownload(const HttpUrl& url, uint64_t offset,
                          const std::function<absl::Status(absl::string_view)>& sink);

}  // namespace fedge

#endif  // FEDGE_CLIENT_HTTP_DOWNLOAD_H_
