// Where the bits of an update go, for reports: its sections against their entropy, and what of the
// adapter the values belong to.
#ifndef FEDGE_COMMON_CODEC_UPDATE_ANATOMY_H_
#define FEDGE_COMMON_CODEC_UPDATE_ANATOMY_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/adapter/adapter_slice.h"
#include "common/base/digest.h"

namespace fedge {

// Of one update, or the sum of several of the same adapter.
struct UpdateAnatomy {
  uint64_t parameters = 0;  // coordinates that could have been sent
  // The sections; together all bits. What a byte is filled up with is in `values`.
  double header_bits = 0;
  double position_bits = 0;
  double scale_bits = 0;
  double value_bits = 0;
  // H(d) + d b for each coordinate: the entropy of independent positions, and b bits a value. Of a
  // trellis, whose code has no entropy below its bits, those bits.
  double floor_bits = 0;
  struct Module {  // values sent; of a trellis, which sends all, the bits they share
    uint64_t a = 0;
    uint64_t b = 0;
  };
  std::vector<Module> modules;  // in the order of LoraSpec::modules

  double total_bits() const { return header_bits + position_bits + scale_bits + value_bits; }
  void Add(const UpdateAnatomy& other);
};

// Codes of DecodeUpdate.
absl::StatusOr<UpdateAnatomy> AnatomyOf(absl::string_view bytes, const Digest& layout_hash,
                                        const SliceLayout& slice);

}  // namespace fedge

#endif  // FEDGE_COMMON_CODEC_UPDATE_ANATOMY_H_
