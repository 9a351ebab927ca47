#include "client/http_download.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr size_t kMaxHeaderBytes = 16 << 10;
constexpr timeval kSilence = {30, 0};

struct Response {
  int code = 0;
  int64_t content_length = -1;  // below 0: until the connection ends
  std::string body;             // what came with the header
};

absl::StatusOr<int> Connect(const HttpUrl& url) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(url.host.c_str(), url.port.c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat(url.host, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, &freeaddrinfo);
  int last_error = 0;
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    const int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kSilence, sizeof(kSilence));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kSilence, sizeof(kSilence));
    if (connect(fd, address->ai_addr, address->ai_addrlen) == 0) return fd;
    last_error = errno;
    close(fd);
  }
  return absl::UnavailableError(
      absl::StrCat("http://", url.host, ":", url.port, ": ", std::strerror(last_error)));
}

absl::Status Broken(const HttpUrl& url, absl::string_view what) {
  return absl::UnavailableError(
      absl::StrCat("http://", url.host, ":", url.port, url.path, ": ", what));
}

absl::StatusOr<Response> ReadHeader(int fd, const HttpUrl& url) {
  std::string text;
  size_t end = std::string::npos;
  char piece[4096];
  while ((end = text.find("\r\n\r\n")) == std::string::npos) {
    if (text.size() > kMaxHeaderBytes) return Broken(url, "an endless header");
    const ssize_t got = recv(fd, piece, sizeof(piece), 0);
    if (got <= 0) return Broken(url, "broke off before the content");
    text.append(piece, static_cast<size_t>(got));
  }
  Response response;
  response.body = text.substr(end + 4);
  const std::vector<std::string> lines = absl::StrSplit(text.substr(0, end), "\r\n");
  const std::vector<std::string> words = absl::StrSplit(lines[0], ' ');
  if (words.size() < 2 || !absl::StartsWith(words[0], "HTTP/1.") ||
      !absl::SimpleAtoi(words[1], &response.code)) {
    return Broken(url, "what answers is no HTTP server");
  }
  for (const std::string& line : lines) {
    const std::pair<std::string, std::string> field = absl::StrSplit(line, absl::MaxSplits(':', 1));
    const std::string name = absl::AsciiStrToLower(field.first);
    if (name == "content-length" && !absl::SimpleAtoi(field.second, &response.content_length)) {
      return Broken(url, "a content length that is no number");
    }
  }
  return response;
}

}  // namespace

absl::StatusOr<HttpUrl> ParseHttpUrl(absl::string_view url) {
  const absl::Status wrong = absl::InvalidArgumentError(
      absl::StrCat("model_url: \"", url, "\" is not http://host[:port]/path"));
  absl::string_view rest = url;
  if (!absl::ConsumePrefix(&rest, "http://")) return wrong;
  const bool clean =
      std::all_of(rest.begin(), rest.end(), [](char c) { return c > ' ' && c < 127; });
  const size_t slash = rest.find('/');
  if (!clean || slash == absl::string_view::npos) return wrong;
  const absl::string_view host = rest.substr(0, slash);
  const size_t colon = host.rfind(':');
  HttpUrl parsed;
  parsed.host = std::string(host.substr(0, colon));
  parsed.port = colon == absl::string_view::npos ? "80" : std::string(host.substr(colon + 1));
  parsed.path = std::string(rest.substr(slash));
  int port = 0;
  if (parsed.host.empty() || !absl::SimpleAtoi(parsed.port, &port) || port < 1 || port > 65535) {
    return wrong;
  }
  return parsed;
}

absl::Status HttpDownload(const HttpUrl& url, uint64_t offset,
                          const std::function<absl::Status(absl::string_view)>& sink) {
  ASSIGN_OR_RETURN(const int fd, Connect(url));
  const auto close_fd = absl::MakeCleanup([fd] { close(fd); });
  // HTTP/1.0: no chunks, and the connection ends with the content.
  const std::string request =
      absl::StrCat("GET ", url.path, " HTTP/1.0\r\nHost: ", url.host, "\r\nRange: bytes=", offset,
                   "-\r\nAccept-Encoding: identity\r\n\r\n");
  if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(request.size())) {
    return Broken(url, std::strerror(errno));
  }
  ASSIGN_OR_RETURN(Response response, ReadHeader(fd, url));
  if (response.code == 404) return absl::NotFoundError(Broken(url, "not there (404)").message());
  if (response.code == 416) return absl::OkStatus();  // nothing from there on
  if (response.code != 200 && response.code != 206) {
    return absl::FailedPreconditionError(
        Broken(url, absl::StrCat("answered ", response.code)).message());
  }
  uint64_t unwanted = response.code == 200 ? offset : 0;
  int64_t left = response.content_length;
  const auto take = [&](absl::string_view bytes) -> absl::Status {
    left -= static_cast<int64_t>(bytes.size());
    const size_t skipped = std::min<uint64_t>(unwanted, bytes.size());
    unwanted -= skipped;
    return bytes.size() == skipped ? absl::OkStatus() : sink(bytes.substr(skipped));
  };
  RETURN_IF_ERROR(take(response.body));
  std::string piece(64 << 10, '\0');
  while (response.content_length < 0 || left > 0) {
    const ssize_t got = recv(fd, piece.data(), piece.size(), 0);
    if (got < 0) return Broken(url, std::strerror(errno));
    if (got == 0) {
      return response.content_length < 0 ? absl::OkStatus() : Broken(url, "the content broke off");
    }
    RETURN_IF_ERROR(take(absl::string_view(piece).substr(0, static_cast<size_t>(got))));
  }
  return absl::OkStatus();
}

}  // namespace fedge
