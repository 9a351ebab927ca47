// A version of a run's adapter as every node of the run holds it: what it started from, and integer
// changes since. The server moves it forward, devices follow; both store it in this form.
#ifndef FEDGE_COMMON_CODEC_ADAPTER_STATE_H_
#define FEDGE_COMMON_CODEC_ADAPTER_STATE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/adapter/lora_adapter.h"
#include "common/base/digest.h"
#include "common/codec/adapter_delta.h"

namespace fedge {

// Memory: 12 bytes a parameter. Copies are deep.
class AdapterState {
 public:
  // Version 0 = LoraAdapter::InitializeForTraining(seed): nothing has to travel.
  static AdapterState FromSeed(LoraSpec spec, const Digest& base_model, uint64_t seed);
  // The version that `content` (kFp32 or kFp16) holds. Codes of DecodeAdapterValues.
  static absl::StatusOr<AdapterState> FromValues(LoraSpec spec, const Digest& base_model,
                                                 std::string content);

  // Adds a delta that starts at this version, or at the version of the start (the changes so far
  // are dropped then). FailedPrecondition: it starts elsewhere. DataLoss: the result is not what
  // the delta announces. Also codes of AddAdapterDelta. On any error the state must not be used.
  absl::Status Apply(absl::string_view delta);
  // The server's way: `change` [num_parameters] makes version + 1. Sums must stay within
  // +-kMaxAdapterUnits (CHECKed).
  void Advance(absl::Span<const int32_t> change);

  const LoraSpec& spec() const { return values_.spec(); }
  const Digest& base_model() const { return base_model_; }
  uint64_t version() const { return version_; }
  uint64_t start_version() const { return start_version_; }
  absl::Span<const float> start() const { return start_; }
  absl::Span<const int32_t> units() const { return units_; }
  const LoraAdapter& adapter() const { return values_; }
  uint32_t crc() const { return crc_; }              // of the values
  uint32_t start_crc() const { return start_crc_; }  // of the start's values
  Digest ValuesDigest() const;                       // SHA-256 of the values as little-endian fp32
  // The content of the start; empty when a seed makes it.
  const std::string& start_content() const { return start_content_; }
  uint64_t seed() const { return seed_; }

  // The change from the start as one delta.
  std::string EncodeWhole() const;
  // Start and changes; Parse checks everything down to the values' checksum: InvalidArgument,
  // DataLoss, FailedPrecondition (another shape or base model).
  std::string Serialize() const;
  static absl::StatusOr<AdapterState> Parse(LoraSpec spec, const Digest& base_model,
                                            absl::string_view bytes);

 private:
  AdapterState(LoraSpec spec, const Digest& base_model);
  void Refresh();  // values and their checksum, from start and units

  Digest base_model_;
  LoraAdapter values_;
  std::vector<float> start_;
  std::vector<int32_t> units_;
  std::string start_content_;
  uint64_t seed_ = 0;
  uint64_t start_version_ = 0;
  uint64_t version_ = 0;
  uint32_t start_crc_ = 0;
  uint32_t crc_ = 0;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_ADAPTER_STATE_H_
