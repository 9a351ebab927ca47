// What devices download: the server's side of global adapters on the wire (proto/PROTOCOL.md,
// proto/ADAPTER_FORMAT.md).
//
// The server holds the fp32 master theta and what every device holds, w (EF21-P: Gruntkowska,
// Tyurin, Richtarik 2023). Each version sends D = Q(theta - w) and moves w by exactly D; what Q
// leaves out stays in theta - w and is sent once it is large enough. D is a change in integers, so
// that a device that missed versions gets their sum, re-encoded, and ends at the same bits.
//
//   device holds version s: the cheapest of  D[s+1] ... D[t]  |  their sum  |  the sum from start
//   device holds nothing:   the start (a seed, or content) and the sum from it
#ifndef FEDGE_SERVER_DOWNLINK_H_
#define FEDGE_SERVER_DOWNLINK_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"
#include "common/codec/adapter_state.h"
#include "fedge/v1/federation.pb.h"
#include "server/change_quantizer.h"
#include "server/run_plan.h"

namespace fedge {

// Thread-safe. Encodes once for all devices. Memory: 12 bytes a parameter, and at most
// kMaxDownlinkBytes each of deltas and of merged ones; older versions are then served whole.
class Downlink {
 public:
  // A version that is ready to be stored and served.
  struct Version {
    std::shared_ptr<const AdapterState> state;
    std::shared_ptr<const std::string> content;  // the delta from the version before, or values
    std::string snapshot;         // what Resume needs beside the content; empty: nothing
    v1::SignedManifest manifest;  // empty: devices get none
  };

  explicit Downlink(const RunPlan& plan);

  // Version 0. InvalidArgument: `initial` has values that cannot be sent.
  absl::StatusOr<Version> Start(const LoraAdapter& initial) const;
  // `master` as version `number`, the one after the version served. InvalidArgument as above.
  absl::StatusOr<Version> Next(const LoraAdapter& master, uint64_t number) const;
  // The version stored last, after a restart. `snapshot`: what Version had; empty (an older release
  // or another encoding stored it): devices begin anew at this version. DataLoss: damaged.
  absl::StatusOr<Version> Resume(const LoraAdapter& master, uint64_t number,
                                 absl::string_view snapshot) const;

  // An older version again, as `number`, the one after the version served: devices come to hold
  // exactly what they held then. `snapshot`: what Version had then; empty: what `master` alone
  // says. Codes of Resume.
  absl::StatusOr<Version> Return(const LoraAdapter& master, uint64_t number,
                                 absl::string_view snapshot) const;

  // Devices that are asked may download it, on top of the version served; Serve ends that.
  void ShowCandidate(const Version& candidate);
  void HideCandidate();
  // How a device that holds the version served gets it; nothing when there is none.
  std::optional<v1::AdapterSource> CandidateSource();

  // From now on `version` is what is served. It is durable.
  void Serve(Version version);
  // Contents of versions before the one served, oldest first and without gaps, the served one's
  // last: devices that hold one of them get the changes since.
  void AddHistory(const std::vector<std::string>& contents);

  // How a device gets `version`; nothing when it is not the one served any more. May encode (a
  // fraction of a second for large adapters).
  std::optional<v1::AdapterSource> Offer(uint64_t version, const v1::HeldAdapter& held);
  // Content by its digest, if it is in memory.
  std::shared_ptr<const std::string> Find(const Digest& digest);

  uint64_t version();
  std::shared_ptr<const AdapterState> state();  // what the devices hold
  LoraAdapter served();                         // what the devices hold, a copy

 private:
  struct Content {
    Digest digest;
    std::shared_ptr<const std::string> bytes;
  };
  // The delta to `to` from the version before.
  struct Link {
    uint64_t to = 0;
    Content content;
  };
  using Contents = std::vector<Content>;

  Version Pack(AdapterState state, std::string content) const;
  absl::StatusOr<AdapterState> StateOfValues(const LoraAdapter& master, uint64_t number) const;
  // What is left to send.
  static std::vector<float> ChangeTo(const AdapterState& held, const LoraAdapter& master);
  absl::StatusOr<Version> NextByTrellis(const AdapterState& held, const LoraAdapter& master) const;
  AdapterHeader HeaderOf(const AdapterState& to, uint64_t from) const;
  std::vector<int32_t> ChooseChange(const AdapterState& state, const LoraAdapter& master) const;
  std::vector<int32_t> FitBudget(
      const AdapterState& state, const ChangeHistogram& histogram,
      absl::FunctionRef<std::vector<int32_t>(const ChangeStep&)> units_of) const;
  std::string EncodeChange(const AdapterState& to, uint64_t from,
                           absl::Span<const int32_t> change) const;
  Content Merge(const AdapterState& to, uint64_t from, const Contents& chain) const;
  // The cheapest way from version `from` (which the device holds) to the served one.
  Contents Cheapest(uint64_t from);
  Content Whole();
  void Remember(uint64_t from, const Content& content) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropOldLinks() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const LoraSpec spec_;
  const Digest base_model_;
  const std::string run_id_;
  const uint64_t seed_;  // of a seeded start
  const DownlinkPlan plan_;

  mutable absl::Mutex mutex_;
  std::shared_ptr<const AdapterState> state_ ABSL_GUARDED_BY(mutex_);
  Content start_ ABSL_GUARDED_BY(mutex_);  // empty for a seeded one
  std::deque<Link> links_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, uint32_t> crcs_ ABSL_GUARDED_BY(mutex_);  // of versions devices may hold
  v1::SignedManifest manifest_ ABSL_GUARDED_BY(mutex_);
  std::optional<v1::AdapterSource> candidate_ ABSL_GUARDED_BY(mutex_);
  Content candidate_content_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, Content> merged_ ABSL_GUARDED_BY(mutex_);  // to the served one, by from
  std::optional<Content> whole_ ABSL_GUARDED_BY(mutex_);        // from the start
};

inline constexpr uint64_t kMaxDownlinkBytes = uint64_t{64} << 20;

}  // namespace fedge

#endif  // FEDGE_SERVER_DOWNLINK_H_
