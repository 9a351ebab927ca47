// A whole server under the check-ins of a large fleet: its own process, TLS with a certificate a
// node, the devices' own link. Every check-in of the first two parts is a connection of its own,
// as of devices that come once a while.
//
//   fleet_bench --summary [NODES [SECONDS]]     one JSON object; 10000 nodes, 60 seconds
//
//   check_ins_per_s            as many as it takes, a handshake each, 32 at a time, this program
//                              on the same processors
//   check_ins_per_cpu_s        the same by the server's processor time
//   steered_check_ins_per_s    when the nodes come as the server asked them to
//   steered_cpu_share          of one processor that the server then needs
//   kept_check_ins_per_s       over 32 connections that stay
//   server_rss_mb, generator_rss_mb    after all of them
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <queue>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/grpc_identity.h"
#include "client/grpc_link.h"
#include "client/node_identity.h"
#include "common/base/logging.h"
#include "common/base/rng.h"
#include "common/base/status.h"
#include "server/federation_server.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

constexpr int kThreads = 32;

template <typename T>
T Get(absl::StatusOr<T> result) {
  FEDGE_CHECK(result.ok(), result.status().message());
  return *std::move(result);
}

// What the fleet has to know of the server; goes through a pipe.
struct ServerFacts {
  int port = 0;
  char base_model[32] = {};
};

v1::ServerConfig Config(const std::string& dir) {
  v1::ServerConfig config;
  config.set_listen("127.0.0.1:0");
  config.set_state_dir(dir);
  config.set_base_model(testing::WriteTinyModel(dir, {}));
  config.mutable_run()->set_nodes_per_round(100);
  config.mutable_run()->set_min_nodes(100);
  config.mutable_run()->set_rounds(1'000'000);
  return config;
}

// Never returns.
[[noreturn]] void Serve(const std::string& dir, int facts_fd) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const auto server = Get(FederationServer::Start(Config(dir), {}));
  ServerFacts facts;
  facts.port = server->grpc().port();
  server->model().sha256().Raw().copy(facts.base_model, sizeof(facts.base_model));
  FEDGE_CHECK(write(facts_fd, &facts, sizeof(facts)) == sizeof(facts), "pipe");
  for (;;) pause();
}

double ResidentMb(pid_t pid) {
  std::ifstream statm(absl::StrCat("/proc/", pid, "/statm"));
  double size = 0, resident = 0;
  statm >> size >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1e6;
}

// Processor time of all threads of `pid`.
double CpuSeconds(pid_t pid) {
  std::ifstream stat(absl::StrCat("/proc/", pid, "/stat"));
  std::string field;
  double ticks = 0;
  for (int i = 1; i <= 15 && stat >> field; ++i) {
    if (i >= 14) ticks += std::atof(field.c_str());
  }
  return ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

class Fleet {
 public:
  Fleet(const std::string& dir, const ServerFacts& facts, int nodes)
      : issuer_(Get(CertificateIssuer::FromPem(
            Get(Env::Posix()->ReadFile(JoinPath(dir, "identity/authority-000001.pem")))))),
        key_(Get(PrivateKey::Generate())),
        server_(absl::StrCat("127.0.0.1:", facts.port)),
        base_model_(facts.base_model, sizeof(facts.base_model)) {
    const Validity validity{absl::Now() - absl::Hours(1), absl::Now() + absl::Hours(24)};
    for (int i = 0; i < nodes; ++i) {
      certificates_.push_back(Get(issuer_.Issue(key_.public_key(), PeerKind::kNode,
                                                absl::StrCat("node-", 100000 + i), validity)));
    }
  }

  int size() const { return static_cast<int>(certificates_.size()); }

  std::unique_ptr<FederationLink> Connect(int node) const {
    const NodeIdentity identity{key_, certificates_[node], {issuer_.certificate()}, server_};
    return ConnectGrpcAs(identity, nullptr, {});
  }

  // Zero if it failed or there was a task; else when the server wants the node again, in seconds.
  double CheckIn(FederationLink& link, int node, Rng& rng) {
    v1::CheckInRequest request;
    request.set_node_id(certificates_[node].identity().name);
    request.set_base_model_sha256(base_model_);
    const absl::StatusOr<v1::CheckInResponse> response = link.CheckIn(request);
    if (!response.ok()) {
      if (failures++ == 0) std::fprintf(stderr, "%s\n", response.status().ToString().c_str());
      return 5;
    }
    ++check_ins;
    if (!response->has_retry()) return 5;
    const v1::RetryWindow& window = response->retry();
    const double share = rng.Uniform();
    return 1e-3 * (static_cast<double>(window.min_delay_ms()) * (1 - share) +
                   static_cast<double>(window.max_delay_ms()) * share);
  }

  std::atomic<int64_t> check_ins{0}, failures{0};

 private:
  CertificateIssuer issuer_;
  PrivateKey key_;
  std::string server_, base_model_;
  std::vector<Certificate> certificates_;
};

template <typename Body>
void OnThreads(const Body& body) {
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back([&, t] { body(t); });
  for (std::thread& thread : threads) thread.join();
}

struct Rate {
  double per_second = 0, per_cpu_second = 0, cpu_share = 0;
};

// Of the check-ins that `body` (called on kThreads threads) makes.
template <typename Body>
Rate Measure(Fleet& fleet, pid_t server, const Body& body) {
  const int64_t before = fleet.check_ins;
  const double cpu = CpuSeconds(server);
  const absl::Time start = absl::Now();
  OnThreads(body);
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  const double used = CpuSeconds(server) - cpu;
  const auto count = static_cast<double>(fleet.check_ins - before);
  return {count / seconds, used > 0 ? count / used : 0, used / seconds};
}

// Every node once, as fast as it goes; notes when each is due again.
Rate Register(Fleet& fleet, pid_t server, std::vector<double>& due) {
  std::atomic<int> next{0};
  const absl::Time start = absl::Now();
  return Measure(fleet, server, [&](int thread) {
    Rng rng = Rng::Stream(1, "register", thread);
    for (int node; (node = next++) < fleet.size();) {
      const double delay = fleet.CheckIn(*fleet.Connect(node), node, rng);
      due[node] = absl::ToDoubleSeconds(absl::Now() - start) + delay;
    }
  });
}

// Each node when it is due, for `seconds`; from the time at which `due` counts from.
Rate ComeAsAsked(Fleet& fleet, pid_t server, const std::vector<double>& due, double seconds) {
  using Due = std::pair<double, int>;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> queue;
  for (int node = 0; node < fleet.size(); ++node) queue.emplace(due[node], node);
  absl::Mutex mutex;
  const absl::Time start = absl::Now();
  return Measure(fleet, server, [&](int thread) {
    Rng rng = Rng::Stream(2, "steered", thread);
    for (;;) {
      const double now = absl::ToDoubleSeconds(absl::Now() - start);
      if (now >= seconds) return;
      int node = -1;
      {
        absl::MutexLock lock(&mutex);
        if (!queue.empty() && queue.top().first <= now) {
          node = queue.top().second;
          queue.pop();
        }
      }
      if (node < 0) {
        absl::SleepFor(absl::Milliseconds(2));
        continue;
      }
      const double delay = fleet.CheckIn(*fleet.Connect(node), node, rng);
      absl::MutexLock lock(&mutex);
      queue.emplace(absl::ToDoubleSeconds(absl::Now() - start) + delay, node);
    }
  });
}

Rate OverKeptConnections(Fleet& fleet, pid_t server, double seconds) {
  const absl::Time end = absl::Now() + absl::Seconds(seconds);
  return Measure(fleet, server, [&](int thread) {
    Rng rng = Rng::Stream(3, "kept", thread);
    const std::unique_ptr<FederationLink> link = fleet.Connect(thread);
    while (absl::Now() < end) fleet.CheckIn(*link, thread, rng);
  });
}

int Main(int argc, char** argv) {
  if (argc < 2 || std::string(argv[1]) != "--summary") {
    std::fprintf(stderr, "usage: fleet_bench --summary [NODES [SECONDS]]\n");
    return 2;
  }
  const int nodes = argc > 2 ? std::atoi(argv[2]) : 10'000;
  const double seconds = argc > 3 ? std::atof(argv[3]) : 60;
  SetLogLevel(LogLevel::kError);
  char pattern[] = "/tmp/fleet_bench.XXXXXX";
  const std::string dir = mkdtemp(pattern);
  int pipe_fds[2];
  FEDGE_CHECK(pipe(pipe_fds) == 0, "pipe");
  const pid_t server = fork();  // before gRPC has any thread
  if (server == 0) Serve(dir, pipe_fds[1]);
  close(pipe_fds[1]);
  ServerFacts facts;
  FEDGE_CHECK(read(pipe_fds[0], &facts, sizeof(facts)) == sizeof(facts),
              "the server did not start");
  const double idle_mb = ResidentMb(server);
  Fleet fleet(dir, facts, nodes);
  std::vector<double> due(nodes, 0);
  const absl::Time start = absl::Now();
  const Rate all = Register(fleet, server, due);
  const double elapsed = absl::ToDoubleSeconds(absl::Now() - start);
  for (double& at : due) at -= elapsed;
  const Rate steered = ComeAsAsked(fleet, server, due, seconds);
  const double server_mb = ResidentMb(server), generator_mb = ResidentMb(getpid());
  const Rate kept = OverKeptConnections(fleet, server, seconds / 6);
  std::printf(
      "{\"nodes\": %d, \"check_ins_per_s\": %.0f, \"check_ins_per_cpu_s\": %.0f, "
      "\"steered_check_ins_per_s\": %.0f, \"steered_cpu_share\": %.2f, \"kept_check_ins_per_s\": "
      "%.0f, \"failures\": %ld, \"server_rss_mb_before\": %.0f, \"server_rss_mb\": %.0f, "
      "\"generator_rss_mb\": %.0f}\n",
      nodes, all.per_second, all.per_cpu_second, steered.per_second, steered.cpu_share,
      kept.per_second, static_cast<long>(fleet.failures), idle_mb, server_mb, generator_mb);
  kill(server, SIGKILL);
  waitpid(server, nullptr, 0);
  std::filesystem::remove_all(dir);
  return 0;
}

}  // namespace
}  // namespace fedge

int main(int argc, char** argv) { return fedge::Main(argc, argv); }
