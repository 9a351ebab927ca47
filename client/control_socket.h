// How commands reach the running daemon: a UNIX socket in the state folder, for its owner only. One
// line in, an answer until the end of the connection.
#ifndef FEDGE_CLIENT_CONTROL_SOCKET_H_
#define FEDGE_CLIENT_CONTROL_SOCKET_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fedge {

// The daemon's end. Not thread-safe; movable.
class ControlSocket {
 public:
  // Replaces a socket that a dead daemon left: hold the folder's StateLock.
  static absl::StatusOr<ControlSocket> Listen(absl::string_view state_dir);
  ControlSocket(ControlSocket&& other) noexcept;
  ControlSocket& operator=(ControlSocket&&) = delete;
  ~ControlSocket();

  int fd() const { return fd_; }  // readable: somebody is there
  // Serves those that are there; a client that is slow is left after a second.
  void Serve(const std::function<std::string(absl::string_view command)>& answer);

 private:
  ControlSocket(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

// The command's end. NotFound: no daemon runs on this folder.
absl::StatusOr<std::string> AskDaemon(absl::string_view state_dir, absl::string_view command);

}  // namespace fedge

#endif  // FEDGE_CLIENT_CONTROL_SOCKET_H_
