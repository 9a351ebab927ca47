// What the server's core can take: updates of a 2.2 M-parameter adapter at 1 % density through the
// real core and the real store (synced blobs, synced rows), on one processor.
//
//   server_bench --summary [DIR]      one JSON object; the state goes below DIR (/tmp)
//
//   updates_per_s                  accepted, decoded, stored and summed; 32 uploads at a time
//   updates_per_s_without_disk     the same with the state in memory (/dev/shm)
//   decode_accumulate_vs_memcpy    bytes of the dense update by the time to decode and add it, in
//                                  those of a copy of it
//   updates_per_cpu_s              the first by processor time: what a busy machine does not change
//   rss_mb_<n>                     peak memory of a server with n updates in a round, no model
//   recovery_ms                    kill -9 to the first accepted chunk of the next process: a round
//                                  of 1000 nodes, 100 of them accepted; without loading a model
//   recovery_ms_500_accepted       the same with 500: each is read and added again
//   close_ms_100                   the update that closes a round of 100: the next version made and
//                                  stored; close_ms_100_median: with the coordinate median
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/process_memory.h"
#include "server/allocator.h"
#include "server/federation_core.h"
#include "server/sqlite_store.h"
#include "tests/server/tiny_run.h"

namespace fedge {
namespace {

constexpr int kStreams = 32;
constexpr uint64_t kRecoveryNodes = 1000;
constexpr uint64_t kChunkBytes = 4096;

// The linear modules of a 0.5 B model, rank 4.
LoraSpec BenchSpec() {
  std::vector<LoraModule> modules;
  const auto add = [&](int layer, const char* name, int64_t in, int64_t out) {
    modules.push_back({.tensor = absl::StrCat("blk.", layer, ".", name, ".weight"),
                       .in_features = in,
                       .out_features = out,
                       .rank = 4});
  };
  for (int layer = 0; layer < 24; ++layer) {
    add(layer, "attn_q", 896, 896);
    add(layer, "attn_k", 896, 128);
    add(layer, "attn_v", 896, 128);
    add(layer, "attn_output", 896, 896);
    add(layer, "ffn_gate", 896, 4864);
    add(layer, "ffn_up", 896, 4864);
    add(layer, "ffn_down", 4864, 896);
  }
  const auto spec = LoraSpec::Create("qwen2", 8, modules);
  FEDGE_CHECK(spec.ok(), spec.status().message());
  return *spec;
}

RunPlan BenchPlan(uint64_t nodes, uint64_t min_nodes) {
  RunPlan plan;
  plan.rounds = 100;
  plan.nodes_per_round = static_cast<int64_t>(nodes);
  plan.min_nodes = static_cast<int64_t>(min_nodes);
  plan.lora = BenchSpec();
  plan.base_model = Sha256Of("bench");
  plan.codec = {.support = UpdateSupport::kTopK, .density = 0.01, .value_bits = 2};
  plan.max_update_bytes =
      EncodedSizeBound(static_cast<uint64_t>(plan.lora.num_parameters()), plan.codec);
  return plan;
}

// The same change from all nodes, with another weight each: other bytes, so no blob is shared.
class Updates {
 public:
  explicit Updates(const RunPlan& plan) : plan_(plan) {
    Rng rng(1);
    values_.resize(static_cast<size_t>(plan.lora.num_parameters()));
    for (float& value : values_) value = static_cast<float>(rng.Normal() * 0.01);
  }
  std::string Make(uint64_t node, uint64_t round) const {
    return testing::MakeUpdate(
        plan_,
        {.round = round, .base_version = round - 1, .num_examples = 1 + node, .values = values_});
  }

 private:
  const RunPlan& plan_;
  std::vector<float> values_;
};

std::string NameOf(uint64_t node) { return absl::StrCat("node-", 100000 + node); }

class Server {
 public:
  Server(const RunPlan& plan, const std::string& dir) : plan_(plan) {
    auto store = SqliteStore::Open({.dir = dir}, *Env::Posix());
    FEDGE_CHECK(store.ok(), store.status().message());
    UploadLimits limits;
    limits.max_upload_bytes = plan.max_update_bytes;
    auto uploads =
        UploadBuffer::Open(JoinPath(dir, "uploads"), limits, *Env::Posix(), *Clock::Real());
    FEDGE_CHECK(uploads.ok(), uploads.status().message());
    FederationCoreOptions options;
    options.clock = Clock::Real();
    LoraAdapter initial(plan.lora);
    initial.InitializeForTraining(1);
    auto core = FederationCore::Create(plan, initial, *std::move(store), *std::move(uploads),
                                       std::move(options));
    FEDGE_CHECK(core.ok(), core.status().message());
    core_ = *std::move(core);
  }

  void CheckIn(uint64_t node) {
    v1::CheckInRequest request;
    request.set_node_id(NameOf(node));
    request.set_base_model_sha256(plan_.base_model.Raw());
    const auto response = core_->CheckIn(request);
    FEDGE_CHECK(response.ok(), response.status().message());
  }
  // The first `size` bytes of an update; whether they were its whole and accepted.
  bool Upload(uint64_t node, uint64_t round, const std::string& bytes, uint64_t size) {
    v1::UploadRequest message;
    v1::UploadId& id = *message.mutable_id();
    id.set_run_id(plan_.run_id);
    id.set_round(round);
    id.set_node_id(NameOf(node));
    id.set_sha256(Sha256Of(bytes).Raw());
    id.set_size_bytes(bytes.size());
    message.mutable_chunk()->set_data(bytes.substr(0, size));
    message.mutable_chunk()->set_crc32c(Crc32c(message.chunk().data()));
    FederationCore::Upload upload = core_->StartUpload();
    const auto receipt = upload.OnMessage(message);
    FEDGE_CHECK(receipt.ok(), receipt.status().message());
    return receipt->has_value() && (*receipt)->verdict() == v1::UploadReceipt::ACCEPTED;
  }
  void Contribute(uint64_t node, uint64_t round, const std::string& bytes) {
    FEDGE_CHECK(Upload(node, round, bytes, bytes.size()));
  }

 private:
  const RunPlan& plan_;
  std::unique_ptr<FederationCore> core_;
};

// A folder below `root`, removed at the end.
class Folder {
 public:
  explicit Folder(const std::string& root) : path_(absl::StrCat(root, "/fedge-bench-XXXXXX")) {
    FEDGE_CHECK(mkdtemp(path_.data()) != nullptr, path_);
  }
  ~Folder() { Env::Posix()->Remove(path_).IgnoreError(); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// What `body` returns in a process of its own.
double InChild(const std::function<double()>& body) {
  int ends[2];
  FEDGE_CHECK(pipe(ends) == 0);
  const pid_t child = fork();
  FEDGE_CHECK(child >= 0);
  if (child == 0) {
    const double result = body();
    FEDGE_CHECK(write(ends[1], &result, sizeof(result)) == sizeof(result));
    _exit(0);
  }
  double result = 0;
  FEDGE_CHECK(read(ends[0], &result, sizeof(result)) == sizeof(result));
  waitpid(child, nullptr, 0);
  close(ends[0]);
  close(ends[1]);
  return result;
}

struct Throughput {
  double per_second = 0;
  double per_cpu_second = 0;
};

Throughput MeasureThroughput(const std::string& root, uint64_t count) {
  const Folder dir(root);
  // The round stays open: aggregation is another figure.
  const RunPlan plan = BenchPlan(count + 1, count + 1);
  const Updates updates(plan);
  std::vector<std::string> bytes;
  for (uint64_t node = 0; node < count; ++node) bytes.push_back(updates.Make(node, 1));
  Server server(plan, dir.path());
  for (uint64_t node = 0; node <= count; ++node) server.CheckIn(node);
  const absl::Time start = absl::Now();
  const std::clock_t cpu_start = std::clock();
  std::atomic<uint64_t> next{0};
  std::vector<std::thread> streams;
  for (int i = 0; i < kStreams; ++i) {
    streams.emplace_back([&] {
      for (uint64_t node = next++; node < count; node = next++) {
        server.Contribute(node, 1, bytes[node]);
      }
    });
  }
  for (std::thread& stream : streams) stream.join();
  const double cpu = static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC;
  const double updates_sent = static_cast<double>(count);
  return {updates_sent / absl::ToDoubleSeconds(absl::Now() - start), updates_sent / cpu};
}

double DecodeAccumulateVsMemcpy() {
  const RunPlan plan = BenchPlan(1, 1);
  const std::string bytes = Updates(plan).Make(0, 1);
  UpdateAggregator sums(plan.lora, MakeAggregatorOptions(plan, 0));
  std::vector<float> from(static_cast<size_t>(plan.lora.num_parameters()), 1.0f), to(from.size());
  const auto seconds = [](const std::function<void()>& work) {
    const absl::Time start = absl::Now();
    work();
    return absl::ToDoubleSeconds(absl::Now() - start);
  };
  // One beside the other, for a neighbour of this machine slows both; the median of the ratios.
  std::vector<double> ratios(101);
  for (double& ratio : ratios) {
    const double copy = seconds([&] {
      std::memcpy(to.data(), from.data(), from.size() * sizeof(float));
      asm volatile("" : : "r"(to.data()) : "memory");
    });
    const double add = seconds([&] {
      const auto update = AdmitUpdate(plan, 1, 0, bytes);
      FEDGE_CHECK(update.ok());
      FEDGE_CHECK(sums.Accumulate({.layout = &update->layout,
                                   .coordinates = update->update.coordinates,
                                   .values = update->update.values},
                                  1)
                      .ok());
    });
    ratio = copy / add;
  }
  std::nth_element(ratios.begin(), ratios.begin() + 50, ratios.end());
  return ratios[50];
}

// Round 1 has two nodes: until a norm is typical, updates are held one by one. Another process
// makes the updates, so that only the server's memory counts.
double PeakMegabytes(const std::string& root, uint64_t count) {
  const Folder dir(root);
  const auto path = [&](uint64_t node, uint64_t round) {
    return absl::StrCat(dir.path(), "/update-", round, "-", node);
  };
  InChild([&] {
    const RunPlan plan = BenchPlan(count + 1, 2);
    const Updates updates(plan);
    const auto save = [&](uint64_t node, uint64_t round) {
      FEDGE_CHECK(Env::Posix()->WriteFileAtomic(path(node, round), updates.Make(node, round)).ok());
    };
    for (uint64_t node = 0; node < 2; ++node) save(node, 1);
    for (uint64_t node = 0; node < count; ++node) save(node, 2);
    return 0.0;
  });
  return InChild([&] {
    const RunPlan plan = BenchPlan(count + 1, 2);
    Server server(plan, dir.path());
    for (uint64_t node = 0; node <= count; ++node) server.CheckIn(node);
    for (uint64_t node = 0; node < 2; ++node) {
      server.Contribute(node, 1, *Env::Posix()->ReadFile(path(node, 1)));
    }
    for (uint64_t node = 0; node < count; ++node) {
      server.Contribute(node, 2, *Env::Posix()->ReadFile(path(node, 2)));
    }
    return static_cast<double>(PeakResidentBytes()) / 1e6;
  });
}

double RecoveryMilliseconds(const std::string& root, uint64_t accepted) {
  const Folder dir(root);
  const RunPlan plan = BenchPlan(kRecoveryNodes, kRecoveryNodes);
  const Updates updates(plan);
  const std::string last = updates.Make(kRecoveryNodes - 1, 1);
  // The child dies with its server alive: nothing is flushed.
  const pid_t child = fork();
  FEDGE_CHECK(child >= 0);
  if (child == 0) {
    Server* const server = new Server(plan, dir.path());
    for (uint64_t node = 0; node < kRecoveryNodes; ++node) server->CheckIn(node);
    for (uint64_t node = 0; node < accepted; ++node) {
      server->Contribute(node, 1, updates.Make(node, 1));
    }
    kill(getpid(), SIGKILL);
  }
  waitpid(child, nullptr, 0);
  const absl::Time killed = absl::Now();
  InChild([&] {
    Server server(plan, dir.path());
    server.Upload(kRecoveryNodes - 1, 1, last, kChunkBytes);
    return 0.0;
  });
  return absl::ToDoubleMilliseconds(absl::Now() - killed);
}

// What the update that closes a round waits for: the next version made of 100, and stored.
double CloseMilliseconds(const std::string& root, RobustRule rule) {
  constexpr uint64_t kNodes = 100;
  const Folder dir(root);
  RunPlan plan = BenchPlan(kNodes, kNodes);
  plan.robust.rule = rule;
  const Updates updates(plan);
  std::vector<std::string> bytes;
  for (uint64_t node = 0; node < kNodes; ++node) bytes.push_back(updates.Make(node, 1));
  Server server(plan, dir.path());
  for (uint64_t node = 0; node < kNodes; ++node) server.CheckIn(node);
  for (uint64_t node = 0; node + 1 < kNodes; ++node) server.Contribute(node, 1, bytes[node]);
  const absl::Time start = absl::Now();
  server.Contribute(kNodes - 1, 1, bytes.back());
  return absl::ToDoubleMilliseconds(absl::Now() - start);
}

int Summary(const std::string& root) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  sched_setaffinity(0, sizeof(one), &one);
  // Children first: a child starts with the memory of its parent.
  const double rss_10 = PeakMegabytes(root, 10);
  const double rss_100 = PeakMegabytes(root, 100);
  const double rss_1000 = PeakMegabytes(root, 1000);
  const double recovery = RecoveryMilliseconds(root, 100);
  const double recovery_500 = RecoveryMilliseconds(root, 500);
  const Throughput in_memory = MeasureThroughput("/dev/shm", 400);
  const Throughput on_disk = MeasureThroughput(root, 400);
  const double close = CloseMilliseconds(root, RobustRule::kNone);
  const double close_median = CloseMilliseconds(root, RobustRule::kMedian);
  std::printf(
      "{\"updates_per_s\": %.0f, \"updates_per_cpu_s\": %.0f, \"updates_per_s_without_disk\": "
      "%.0f, "
      "\"decode_accumulate_vs_memcpy\": %.2f, \"rss_mb_10\": %.1f, \"rss_mb_100\": %.1f, "
      "\"rss_mb_1000\": %.1f, \"recovery_ms\": %.0f, \"recovery_ms_500_accepted\": %.0f, "
      "\"close_ms_100\": %.0f, \"close_ms_100_median\": %.0f}\n",
      on_disk.per_second, on_disk.per_cpu_second, in_memory.per_second, DecodeAccumulateVsMemcpy(),
      rss_10, rss_100, rss_1000, recovery, recovery_500, close, close_median);
  return 0;
}

}  // namespace
}  // namespace fedge

int main(int argc, char** argv) {
  if (argc < 2 || std::strcmp(argv[1], "--summary") != 0 || argc > 3) {
    std::fprintf(stderr, "usage: server_bench --summary [DIR]\n");
    return 2;
  }
  fedge::KeepMemoryForUpdates();
  return fedge::Summary(argc == 3 ? argv[2] : "/tmp");
}
