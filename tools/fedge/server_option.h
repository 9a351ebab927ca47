// The options that say which server a command talks to, and as whom.
#ifndef FEDGE_TOOLS_FEDGE_SERVER_OPTION_H_
#define FEDGE_TOOLS_FEDGE_SERVER_OPTION_H_

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <string>

namespace fedge {

struct ServerOption {
  // The socket of the state folder in the working directory.
  std::string address = "unix:fedge-server-state/admin.sock";
  std::string identity;  // file of `fedge operator certify`; for HOST:PORT
};

// --server and --identity, or $FEDGE_SERVER and $FEDGE_IDENTITY.
// Who asks, for the audit log; empty where it is not known. The server believes a certificate more.
inline std::string LocalUser() {
  const char* const user = std::getenv("USER");
  return user == nullptr ? "" : user;
}

inline void AddServerOption(CLI::App* command, ServerOption& server) {
  command
      ->add_option("--server", server.address,
                   "Where the server serves operators: unix:PATH or HOST:PORT (default: " +
                       server.address + ")")
      ->envname("FEDGE_SERVER")
      ->type_name("ADDRESS");
  command
      ->add_option("--identity", server.identity,
                   "Key and certificate of `fedge operator certify`, for HOST:PORT")
      ->envname("FEDGE_IDENTITY")
      ->type_name("FILE");
}

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_SERVER_OPTION_H_
