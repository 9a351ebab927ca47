// A random model of any family and small size as a GGUF file, for tests that need a real model file
// but no real language.
#ifndef FEDGE_TESTS_TESTING_TINY_MODEL_H_
#define FEDGE_TESTS_TESTING_TINY_MODEL_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/formats/gguf_writer.h"
#include "common/tensor/dtype.h"

namespace fedge::testing {

// The vocabulary is of the SentencePiece kind: <unk>, <s>, </s> (ids 0, 1, 2), the 256 byte tokens
// (ids 3..258), then "▁", the letters, and a few English pieces; every text can be encoded.
inline constexpr int64_t kTinyVocabularySize = 320;

struct TinyModelOptions {
  int64_t block_count = 2;
  int64_t embedding_length = 32;  // multiples of 32 for quantized types
  int64_t feed_forward_length = 64;
  int64_t head_count = 4;
  int64_t head_count_kv = 2;
  int64_t head_dim = 0;  // 0: embedding_length / head_count
  int64_t context_length = 128;
  int64_t vocab_size = kTinyVocabularySize;  // at least that; the rest are unused tokens
  DType dtype = DType::kF32;                 // of the matrices; norms are F32
  bool tied_output = true;
  bool rope_frequency_factors = false;  // adds rope_freqs.weight, for phi3 the long and short ones
  uint64_t seed = 1;                    // of the weights
  // Decides which norms, biases and fused linears there are.
  std::string architecture = "llama";
  bool biases = false;         // of every linear and the head; qwen2 always has those of q, k, v
  bool fused_qkv = false;      // phi3 always has
  int64_t rope_dim = 0;        // 0: head_dim
  int64_t sliding_window = 0;  // 0: no key
  // To make broken files: tensors left out, and a last word on the metadata and tensors.
  std::vector<std::string> omit_tensors;
  std::function<void(GgufWriter&)> extra;
};

std::string MakeTinyModelGguf(const TinyModelOptions& options);  // the file's bytes

// Writes <dir>/tiny.gguf (the folder is created) and returns its path. CHECKs on failure.
std::string WriteTinyModel(absl::string_view dir, const TinyModelOptions& options);

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_TINY_MODEL_H_
