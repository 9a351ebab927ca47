// The door of a listener: who may open how many connections, and which are not of use to anybody.
// It accepts them in gRPC's place and hands them over, because gRPC counts neither: of strangers it
// knows nothing before its handshake, which costs this machine milliseconds, and a message that
// comes a byte a second keeps a connection for as long as it likes.
//
// - Each address may have a burst of connections that no call came of, and then some a second.
//   Nodes behind one address (a network's router, a container bridge) are not counted against each
//   other: a connection is taken off with its first call.
// - A connection with nothing of it in hand (no call that the server works for, no message come in)
//   is cut after kPatience, unless bytes keep coming at a link's pace.
// - All addresses together may have max_connections, of which one gets half at most: the process's
//   file descriptors are finite, and shared out between the listeners.
#ifndef FEDGE_SERVER_CONNECTION_GATE_H_
#define FEDGE_SERVER_CONNECTION_GATE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace fedge {

struct ConnectionGateOptions {
  std::string listen;              // "host:port"; port 0 picks a free one
  std::string name;                // in logs
  bool calls_pay = true;           // a call takes its connection off the address's account
  double burst = 300;              // connections without a call, of one address
  double per_second = 5;           // given back; a TLS handshake costs some 2.6 ms
  size_t max_connections = 250;    // of all addresses; see ConnectionsWithin
  size_t max_addresses = 100'000;  // followed at a time
};

// As many connections as `share` of the file descriptors that this process may have is good for:
// two each, gRPC's and the gate's.
size_t ConnectionsWithin(double share);

// Thread-safe.
class ConnectionGate {
 public:
  // Gives a connected, non-blocking socket away; from the gate's thread.
  using Sink = std::function<void(int fd)>;

  // Listens; connections wait until Start. FailedPrecondition: the address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<ConnectionGate>> Listen(ConnectionGateOptions options);
  void Start(Sink sink);
  void Stop();  // no more connections; those handed over stay, and are not looked at any more
  ~ConnectionGate();

  int port() const { return port_; }

  // That the server works for a call, from its message to its answer. The peer is gRPC's name of
  // it, "ipv4:10.0.0.7:5123"; one the gate does not know is fine. May outlive the gate's thread,
  // not the gate; null: no gate.
  class Work {
   public:
    Work(ConnectionGate* gate, absl::string_view peer);
    ~Work();
    Work(const Work&) = delete;
    Work& operator=(const Work&) = delete;

   private:
    ConnectionGate* const gate_;
    const std::string peer_;
  };

 private:
  struct Connection {
    int fd = -1;  // of our own beside gRPC's, to look at it and to shut it down
    std::string address;
    int in_hand = 0;
    bool had_call = false;
    absl::Duration since;  // what is measured from, with the bytes received by then
    uint64_t bytes = 0;
  };
  struct Account {
    double used = 0;  // not yet given back
    absl::Duration refilled;
  };

  explicit ConnectionGate(ConnectionGateOptions options);
  absl::Status Bind();
  void Run();
  void Accept(int listener);
  // OK: the connection may come in. ResourceExhausted, with a reason for the log: it may not, and
  // nothing of it is kept.
  absl::Status Enter(int fd, const std::string& peer, absl::Duration now);
  bool Admit(const std::string& address, absl::Duration now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Account& Refill(Account& account, absl::Duration now) const;
  void Sweep(absl::Duration now);
  void Begin(const std::string& peer);
  void End(const std::string& peer);
  void TurnAway(int fd, const absl::Status& reason, absl::Duration now);

  const ConnectionGateOptions options_;
  std::vector<int> listeners_;
  int wake_fd_ = -1;
  int port_ = 0;
  Sink sink_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, Connection> connections_ ABSL_GUARDED_BY(mutex_);  // by gRPC's name
  std::map<std::string, Account> accounts_ ABSL_GUARDED_BY(mutex_);        // by PeerAddress
  uint64_t turned_away_ = 0;  // of the thread: since the last line in the log
  absl::Duration next_line_;
  std::thread thread_;
};

}  // namespace fedge

#endif  // FEDGE_SERVER_CONNECTION_GATE_H_
