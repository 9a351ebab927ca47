#include "server/update_tiles.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "server/aggregation_runs.h"

namespace fedge {
namespace {

struct Piece {
  int64_t offset = 0;
  int64_t size = 0;
  int64_t component = 0;
  bool is_b = false;
};

std::vector<Piece> PiecesOf(const LoraSpec& spec) {
  std::vector<Piece> pieces;
  const SliceLayout whole = SliceLayout::Whole(spec);
  for (const SliceRun& run : whole.runs()) {
    for (int64_t start = 0, component = 0; start < run.size; start += run.row, ++component) {
      for (int64_t at = 0; at < run.row; at += UpdatePiece::kPieceSize) {
        pieces.push_back({run.offset + start + at, std::min(UpdatePiece::kPieceSize, run.row - at),
                          component, run.is_b});
      }
    }
  }
  return pieces;
}

bool Trains(const AdapterSlice& slice, const Piece& piece) {
  if (slice.factors == (piece.is_b ? SliceFactors::kA : SliceFactors::kB)) return false;
  return piece.component >= slice.first_component && piece.component < slice.end_component;
}

// What `update` holds of the coordinates [first, first + row.size()).
absl::Status FillRow(const AdmittedUpdate& update, int64_t first, absl::Span<float> row) {
  std::fill(row.begin(), row.end(), 0.0f);
  ASSIGN_OR_RETURN(const std::vector<RunValues> runs,
                   SplitIntoRuns(update.layout, update.update.coordinates, update.update.values));
  const int64_t end = first + static_cast<int64_t>(row.size());
  for (const RunValues& values : runs) {
    const SliceRun& run = values.run();
    if (run.offset + run.size <= first || run.offset >= end) continue;
    values.ForEach([&](int64_t component, int64_t column, float value) {
      const int64_t at = run.offset + (component - values.first_component()) * run.row + column;
      if (at >= first && at < end) row[static_cast<size_t>(at - first)] = value;
    });
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<size_t>> UsableUpdates(const LoraSpec& spec,
                                                  const UpdateSource& source) {
  std::vector<size_t> usable;
  for (size_t i = 0; i < source.size(); ++i) {
    ASSIGN_OR_RETURN(const std::shared_ptr<const AdmittedUpdate> update, source.Read(i));
    if (update->layout.adapter_size() != spec.num_parameters()) continue;
    const bool ok =
        SplitIntoRuns(update->layout, update->update.coordinates, update->update.values).ok();
    if (ok) usable.push_back(i);
  }
  return usable;
}

absl::Status ForEachPiece(const LoraSpec& spec, const UpdateSource& source,
                          absl::Span<const size_t> usable, size_t tile_bytes,
                          const std::function<void(const UpdatePiece&)>& visit) {
  const std::vector<Piece> pieces = PiecesOf(spec);
  const auto row_values =
      static_cast<int64_t>(tile_bytes / sizeof(float) / std::max<size_t>(usable.size(), 1));
  std::vector<float> tile;
  std::vector<AdapterSlice> slices(usable.size());
  for (size_t begin = 0; begin < pieces.size();) {
    const int64_t first = pieces[begin].offset;
    size_t end = begin + 1;
    while (end < pieces.size() && pieces[end].offset + pieces[end].size - first <= row_values) {
      ++end;
    }
    const auto width = static_cast<size_t>(pieces[end - 1].offset + pieces[end - 1].size - first);
    tile.resize(width * usable.size());
    for (size_t i = 0; i < usable.size(); ++i) {
      ASSIGN_OR_RETURN(const std::shared_ptr<const AdmittedUpdate> update, source.Read(usable[i]));
      slices[i] = update->layout.slice();
      RETURN_IF_ERROR(FillRow(*update, first, absl::MakeSpan(tile).subspan(i * width, width)));
    }
    std::vector<size_t> trained;
    std::vector<const float*> rows;
    for (; begin < end; ++begin) {
      const Piece& piece = pieces[begin];
      trained.clear();
      rows.clear();
      for (size_t i = 0; i < usable.size(); ++i) {
        if (!Trains(slices[i], piece)) continue;
        trained.push_back(usable[i]);
        rows.push_back(tile.data() + i * width + static_cast<size_t>(piece.offset - first));
      }
      if (!trained.empty()) visit({piece.offset, piece.size, trained, rows});
    }
  }
  return absl::OkStatus();
}

}  // namespace fedge
