// The option that says which server a command talks to.
#ifndef FEDGE_TOOLS_FEDGE_SERVER_OPTION_H_
#define FEDGE_TOOLS_FEDGE_SERVER_OPTION_H_

#include <CLI/CLI.hpp>
#include <string>

namespace fedge {

// --server; sets the default: the socket of the state folder in the working directory.
inline void AddServerOption(CLI::App* command, std::string& server) {
  server = "unix:fedge-server-state/admin.sock";
  command
      ->add_option(
          "--server", server,
          "Where the server serves operators: unix:PATH or HOST:PORT (default: " + server + ")")
      ->type_name("ADDRESS");
}

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_SERVER_OPTION_H_
