#include "common/model/loss_head.h"

#include <algorithm>

namespace fedge {
namespace {

// Logits of one chunk: enough rows to amortize decoding the head, within this many floats (32 MiB).
constexpr int64_t kLogitsPerChunk = int64_t{1} << 23;
constexpr int64_t kMinChunkRows = 32;
constexpr int64_t kMaxChunkRows = 512;
constexpr int64_t kWholeRows = 16;  // vectors of rows in the products

}  // namespace

LossHead::LossHead(const BoundModel* model, ThreadPool* pool, int64_t chunk_rows,
                   FloatBuffer* between)
    : model_(*model),
      pool_(*pool),
      chunk_rows_(chunk_rows > 0 ? chunk_rows
                                 : DefaultChunkRows(model->model().config().vocab_size)),
      logits_(*between) {}

int64_t LossHead::DefaultChunkRows(int64_t vocabulary) {
  const int64_t rows = std::clamp(kLogitsPerChunk / vocabulary, kMinChunkRows, kMaxChunkRows);
  return rows / kWholeRows * kWholeRows;
}

int64_t LossHead::LogitBytes(const ModelConfig& config, int64_t rows) {
  return rows * config.vocab_size * static_cast<int64_t>(sizeof(float));
}

int64_t LossHead::OtherBytes(const ModelConfig& config, int64_t rows, int64_t rank) {
  const int64_t capped = config.logit_soft_cap == 0 ? 0 : config.vocab_size;
  const int64_t row = capped + 4 * config.embedding_length + rank + 3;
  return rows * row * static_cast<int64_t>(sizeof(float));
}

std::vector<double> LossHead::Forward(const float* x, const ScoredRows& rows,
                                      absl::Span<float> token_nats) {
  return Run(x, rows, nullptr, token_nats, nullptr);
}

std::vector<double> LossHead::ForwardBackward(const float* x, const ScoredRows& rows,
                                              const GradientSink& sink,
                                              absl::Span<float> token_nats, float* dx) {
  return Run(x, rows, &sink, token_nats, dx);
}

std::vector<double> LossHead::Run(const float* x, const ScoredRows& rows, const GradientSink* sink,
                                  absl::Span<float> token_nats, float* dx) {
  std::vector<double> sums;
  int64_t begin = 0;
  for (size_t part = 0; part < rows.ends.size(); ++part) {
    double sum = 0;
    for (; begin < rows.ends[part]; begin = std::min(begin + chunk_rows_, rows.ends[part])) {
      const Chunk chunk = {rows.where.data() + begin, rows.targets.data() + begin,
                           rows.weights.data() + begin,
                           std::min(chunk_rows_, rows.ends[part] - begin), part};
      RunChunk(x, chunk, sink, token_nats, sum, dx);
    }
    sums.push_back(sum);
  }
  return sums;
}

void LossHead::RunChunk(const float* x, const Chunk& chunk, const GradientSink* sink,
                        absl::Span<float> token_nats, double& sum, float* dx) {
  const int64_t vocabulary = model_.model().config().vocab_size;
  ForwardChunk(x, chunk);
  nats_.resize(static_cast<size_t>(chunk.rows));
  if (sink == nullptr) {
    CrossEntropyForward(logits_.data(), chunk.targets, chunk.rows, vocabulary, nats_.data(), pool_);
  } else {
    CrossEntropyForwardBackward(logits_.data(), chunk.targets, chunk.rows, vocabulary,
                                chunk.weights, nats_.data(), pool_);
    BackwardChunk(chunk, *sink, dx);
  }
  for (int64_t i = 0; i < chunk.rows; ++i) {
    const double nats = nats_[static_cast<size_t>(i)];
    sum += nats;
    if (token_nats.empty()) continue;
    token_nats[static_cast<size_t>(chunk.where[i])] = static_cast<float>(nats);
  }
}

// The chunk's rows -> hidden_, normed_, logits_; with a soft cap also capped_.
void LossHead::ForwardChunk(const float* x, const Chunk& chunk) {
  const ModelConfig& config = model_.model().config();
  const int64_t channels = config.embedding_length;
  const int64_t size = chunk.rows * config.vocab_size;
  float* const hidden = hidden_.Get(chunk.rows * channels);
  for (int64_t i = 0; i < chunk.rows; ++i) {
    std::copy_n(x + chunk.where[i] * channels, channels, hidden + i * channels);
  }
  RmsNormForward(hidden, model_.model().output_norm(), chunk.rows, channels, config.rms_epsilon,
                 normed_.Get(chunk.rows * channels), inv_.Get(chunk.rows), pool_);
  const Linear& output = model_.output(chunk.part);
  const LinearForwardCall head = {&output, u_.Get(chunk.rows * output.rank), logits_.Get(size)};
  LinearForward({head}, normed_.data(), {chunk.rows, {chunk.rows}}, pool_);
  if (config.logit_soft_cap == 0) return;
  SoftCapForward(config.logit_soft_cap, chunk.rows, config.vocab_size, logits_.data(), pool_);
  std::copy_n(logits_.data(), size, capped_.Get(size));
}

// logits_ holds their gradient; the rows' gradient goes to dx.
void LossHead::BackwardChunk(const Chunk& chunk, const GradientSink& sink, float* dx) {
  const ModelConfig& config = model_.model().config();
  const int64_t channels = config.embedding_length;
  const int64_t size = chunk.rows * channels;
  if (config.logit_soft_cap != 0) {
    SoftCapBackward(config.logit_soft_cap, capped_.data(), chunk.rows, config.vocab_size,
                    logits_.data(), pool_);
  }
  const HeadGradient gradient = model_.GradientOfHead(sink, chunk.part);
  const LinearBackwardCall head = {&model_.output(chunk.part), &gradient.linear, u_.data(),
                                   logits_.data()};
  LinearBackward({head}, normed_.data(), {chunk.rows, {chunk.rows}}, Accumulate::kNo,
                 d_normed_.Get(size), pool_);
  float* const d_hidden = d_hidden_.Get(size);
  std::fill_n(d_hidden, size, 0.0f);
  RmsNormBackward(hidden_.data(), model_.model().output_norm(), inv_.data(), d_normed_.data(),
                  chunk.rows, channels, d_hidden, gradient.norm, pool_);
  for (int64_t i = 0; i < chunk.rows; ++i) {
    std::copy_n(d_hidden + i * channels, channels, dx + chunk.where[i] * channels);
  }
}

void LossHead::Logits(const float* x, float* logits) {
  const ModelConfig& config = model_.model().config();
  RmsNormForward(x, model_.model().output_norm(), 1, config.embedding_length, config.rms_epsilon,
                 normed_.Get(config.embedding_length), inv_.Get(1), pool_);
  const LinearForwardCall head = {&model_.output(0), u_.Get(model_.output(0).rank), logits};
  LinearForward({head}, normed_.data(), {1, {1}}, pool_);
  if (config.logit_soft_cap == 0) return;
  SoftCapForward(config.logit_soft_cap, 1, config.vocab_size, logits, pool_);
}

}  // namespace fedge
