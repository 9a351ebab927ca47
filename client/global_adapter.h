// The global adapter on its way to a node and in its keeping: fetches what a task says, adds it to
// what the node holds, and keeps the result for the next task (proto/ADAPTER_FORMAT.md).
//
// Whatever is wrong with what was kept (damaged, another run's, a server that was set back) shows
// as a checksum, and costs one whole download.
#ifndef FEDGE_CLIENT_GLOBAL_ADAPTER_H_
#define FEDGE_CLIENT_GLOBAL_ADAPTER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/participant_state.h"
#include "client/server_key.h"
#include "client/transfer.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"
#include "common/codec/adapter_state.h"
#include "fedge/v1/federation.pb.h"

namespace fedge {

// Not thread-safe; one per participant.
class GlobalAdapter {
 public:
  // `transfer`, `kept` (may be null: nothing is kept) and `key` (may be null: signatures are not
  // looked at) must outlive this object.
  GlobalAdapter(std::string node_id, const Digest& base_model, Transfer* transfer, StateStore* kept,
                ServerKey* key = nullptr);
  GlobalAdapter(const GlobalAdapter&) = delete;
  GlobalAdapter& operator=(const GlobalAdapter&) = delete;

  // For the check-in; empty when nothing usable is kept.
  const v1::HeldAdapter& held();
  // As if nothing had been kept.
  void Forget();

  // The version `source` leads to. InvalidArgument: a source out of bounds. DataLoss,
  // FailedPrecondition: the contents do not lead there; after Forget and a new check-in they may.
  // Unauthenticated: the server's key does not vouch for it (client/server_key.h). Also codes of
  // Transfer::Fetch.
  absl::StatusOr<LoraAdapter> Fetch(const LoraSpec& spec, const v1::AdapterSource& source);
  // The same, with what the next changes are added to.
  absl::StatusOr<AdapterState> FetchState(const LoraSpec& spec, const v1::AdapterSource& source);
  // A candidate for the version after `current`, on top of it; it is not kept. Codes of Fetch.
  absl::StatusOr<AdapterState> FetchCandidate(const AdapterState& current,
                                              const v1::AdapterSource& source);

  uint64_t downloaded_bytes() const { return downloaded_bytes_; }  // since construction
  // Why the last fetched version could not be kept; empty: it was.
  std::string TakeWarning() { return std::exchange(warning_, {}); }

 private:
  absl::StatusOr<AdapterState> Start(const LoraSpec& spec, const v1::AdapterSource& source);
  // Fetches and adds the deltas; checks that the source's version comes of it.
  absl::Status Follow(const v1::AdapterSource& source, const std::optional<Digest>& values,
                      AdapterState& state);
  absl::StatusOr<std::optional<Digest>> CheckSignature(const v1::AdapterSource& source,
                                                       absl::string_view context,
                                                       const LoraSpec& spec);
  absl::StatusOr<std::string> FetchContent(const v1::ContentRef& ref, uint64_t max_bytes);
  void Keep(const AdapterState& state, const std::string& run_id);

  const std::string node_id_;
  const Digest base_model_;
  Transfer* const transfer_;
  StateStore* const kept_;
  ServerKey* const key_;
  std::optional<v1::HeldAdapter> held_;  // empty: not looked yet
  uint64_t downloaded_bytes_ = 0;
  std::string warning_;
};

// Bytes by node, of which equal ones are held once: many nodes of one process keep the same
// adapter.
class SharedStateStore : public StateStore {
 public:
  absl::StatusOr<std::string> Read(absl::string_view node_id) override;
  absl::Status Write(absl::string_view node_id, std::string bytes) override;
  uint64_t memory_bytes() const;

 private:
  struct Shared {
    std::string bytes;
    int64_t nodes = 0;
  };

  mutable absl::Mutex mutex_;
  std::map<Digest, Shared> contents_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Digest, std::less<>> by_node_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fedge

#endif  // FEDGE_CLIENT_GLOBAL_ADAPTER_H_
