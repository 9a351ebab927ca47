// The updates of a round as a matrix of nodes x coordinates, a tile of coordinates at a time:
// memory is bounded by the tile, not by nodes x parameters.
#ifndef FEDGE_SERVER_UPDATE_TILES_H_
#define FEDGE_SERVER_UPDATE_TILES_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/adapter/lora_adapter.h"
#include "server/update_source.h"

namespace fedge {

inline constexpr size_t kDefaultTileBytes = size_t{64} << 20;

// At most kPieceSize consecutive coordinates of one component of one factor, which a node either
// trained or did not. Pieces do not depend on tiles, so neither do sums made piece by piece.
struct UpdatePiece {
  static constexpr int64_t kPieceSize = 4096;
  int64_t offset = 0;  // in the flat adapter
  int64_t size = 0;
  absl::Span<const size_t> trained;     // the updates whose slices have it, ascending
  absl::Span<const float* const> rows;  // [trained.size()][size]; what was not sent is 0
};

// The updates of `source` that hold finite values within kMaxUpdateMagnitude and fit `spec`,
// ascending. Admission lets no others in: a rule leaves them out rather than trust that. Errors are
// those of reading.
absl::StatusOr<std::vector<size_t>> UsableUpdates(const LoraSpec& spec, const UpdateSource& source);

// Calls visit for each piece that at least one of `usable` trained, in ascending order. Reads each
// update once a tile. Memory: `tile_bytes`, at least 16 KB an update.
absl::Status ForEachPiece(const LoraSpec& spec, const UpdateSource& source,
                          absl::Span<const size_t> usable, size_t tile_bytes,
                          const std::function<void(const UpdatePiece&)>& visit);

}  // namespace fedge

#endif  // FEDGE_SERVER_UPDATE_TILES_H_
