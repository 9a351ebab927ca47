#include "tools/pretrain/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/base/byte_io.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr absl::string_view kMagic = "FEDGEPT1";

absl::string_view BytesOf(absl::Span<const float> values) {
  return absl::string_view(reinterpret_cast<const char*>(values.data()),
                           values.size() * sizeof(float));
}

// Magic, run, step, smoothed loss.
constexpr size_t kHeaderBytes = 8 + 32 + 8 + 8;

size_t ExpectedBytes(const LlamaWeights& weights) {
  size_t total = kHeaderBytes + sizeof(uint32_t);
  for (size_t i = 0; i < weights.num_tensors(); ++i) {
    total += sizeof(int64_t) + 3 * weights.values(i).size() * sizeof(float);
  }
  return total;
}

std::vector<float> ReadFloats(ByteReader& reader, size_t count) {
  std::vector<float> values(count);
  const absl::string_view bytes = reader.ReadBytes(count * sizeof(float));
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

absl::Status WriteCheckpoint(const PretrainState& state, const Digest& run, absl::string_view path,
                             Env& env) {
  ByteWriter writer;
  writer.WriteBytes(kMagic);
  writer.WriteBytes(run.Raw());
  writer.Write<int64_t>(state.step);
  writer.Write<double>(state.smooth_loss);
  for (size_t i = 0; i < state.weights->num_tensors(); ++i) {
    const AdamW& adamw = (*state.optimizer)[i];
    writer.Write<int64_t>(adamw.steps());
    writer.WriteBytes(BytesOf(state.weights->values(i)));
    writer.WriteBytes(BytesOf(adamw.first_moment()));
    writer.WriteBytes(BytesOf(adamw.second_moment()));
  }
  const uint32_t crc = Crc32c(writer.bytes());
  writer.Write<uint32_t>(crc);
  return env.WriteFileAtomic(path, writer.bytes());
}

absl::StatusOr<bool> ReadCheckpoint(absl::string_view path, const Digest& run, Env& env,
                                    PretrainState& state) {
  if (!env.Exists(path)) return false;
  ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> file, env.Map(path));
  const absl::string_view bytes = file->bytes();
  ByteReader reader(bytes);
  if (reader.ReadBytes(kMagic.size()) != kMagic) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": not a pre-training checkpoint; give another checkpoint file"));
  }
  if (reader.ReadBytes(run.bytes.size()) != run.Raw()) {
    return absl::FailedPreconditionError(absl::StrCat(
        path,
        ": the checkpoint is of a run with another corpus or other options; remove it to "
        "start anew"));
  }
  uint32_t crc = 0;
  if (bytes.size() == ExpectedBytes(*state.weights)) {
    std::memcpy(&crc, bytes.data() + bytes.size() - sizeof(crc), sizeof(crc));
  }
  if (bytes.size() != ExpectedBytes(*state.weights) ||
      crc != Crc32c(bytes.substr(0, bytes.size() - sizeof(crc)))) {
    return absl::DataLossError(
        absl::StrCat(path, ": the checkpoint is damaged; remove it to start anew"));
  }
  state.step = reader.Read<int64_t>();
  state.smooth_loss = reader.Read<double>();
  for (size_t i = 0; i < state.weights->num_tensors(); ++i) {
    const absl::Span<float> values = state.weights->values(i);
    const int64_t steps = reader.Read<int64_t>();
    const std::vector<float> weights = ReadFloats(reader, values.size());
    const std::vector<float> first = ReadFloats(reader, values.size());
    const std::vector<float> second = ReadFloats(reader, values.size());
    std::copy(weights.begin(), weights.end(), values.begin());
    (*state.optimizer)[i].Restore(steps, first, second);
  }
  return true;
}

}  // namespace fedge
