#include "common/training/generation.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

absl::Status CheckRequest(const Transformer& transformer, absl::Span<const TokenId> prompt,
                          const GenerateOptions& options) {
  const SamplingOptions& sampling = options.sampling;
  if (!(sampling.temperature >= 0 && std::isfinite(sampling.temperature)) || sampling.top_k < 0 ||
      !(sampling.top_p > 0 && sampling.top_p <= 1) || options.max_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature ", sampling.temperature, " must be at least 0, top-k ",
                     sampling.top_k, " at least 0, top-p ", sampling.top_p,
                     " in (0, 1], the number of tokens ", options.max_tokens, " at least 0"));
  }
  if (prompt.empty()) {
    return absl::InvalidArgumentError("the prompt is empty and the model has no begin token");
  }
  const ModelConfig& config = transformer.model().config();
  if (static_cast<int64_t>(prompt.size()) > config.context_length) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", prompt.size(),
                                                   " tokens, the model's context holds ",
                                                   config.context_length, "; shorten it"));
  }
  for (const TokenId id : prompt) {
    if (id < 0 || id >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("token ", id, " is outside the vocabulary of ",
                                                     config.vocab_size, " tokens"));
    }
  }
  return absl::OkStatus();
}

TokenId MostLikely(absl::Span<const float> logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

TokenId SampleToken(absl::Span<const float> logits, const SamplingOptions& options, Rng& rng) {
  FEDGE_CHECK(!logits.empty());
  if (options.temperature <= 0) return MostLikely(logits);
  std::vector<TokenId> ids(logits.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<TokenId>(i);
  const size_t kept =
      options.top_k > 0 ? std::min(ids.size(), static_cast<size_t>(options.top_k)) : ids.size();
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(kept), ids.end(),
                    [&logits](TokenId a, TokenId b) {
                      const float la = logits[static_cast<size_t>(a)];
                      const float lb = logits[static_cast<size_t>(b)];
                      return la != lb ? la > lb : a < b;
                    });
  ids.resize(kept);
  const double top = logits[static_cast<size_t>(ids.front())];
  std::vector<double> weights;
  double total = 0;
  for (const TokenId id : ids) {
    const double logit = logits[static_cast<size_t>(id)];
    weights.push_back(std::exp((logit - top) / options.temperature));
    total += weights.back();
  }
  size_t nucleus = 0;
  double nucleus_sum = 0;
  while (nucleus < weights.size() && (nucleus == 0 || nucleus_sum < options.top_p * total)) {
    nucleus_sum += weights[nucleus++];
  }
  double draw = rng.Uniform() * nucleus_sum;
  for (size_t i = 0; i < nucleus; ++i) {
    draw -= weights[i];
    if (draw < 0) return ids[i];
  }
  return ids[nucleus - 1];
}

absl::StatusOr<GenerateResult> Generate(
    Transformer& transformer, const LoraAdapter* adapter, absl::Span<const TokenId> prompt,
    const GenerateOptions& options,
    const std::function<bool(TokenId, absl::string_view)>& on_token) {
  RETURN_IF_ERROR(CheckRequest(transformer, prompt, options));
  const Tokenizer& tokenizer = transformer.model().tokenizer();
  const int64_t size = static_cast<int64_t>(prompt.size());
  const int64_t capacity =
      std::min(transformer.model().config().context_length, size + options.max_tokens);
  KvCache cache(transformer.model().config(), capacity, {options.kv_type});
  Rng rng = Rng::Stream(options.seed, "sampling");
  GenerateResult result;
  if (options.max_tokens == 0) return result;
  ASSIGN_OR_RETURN(std::vector<float> logits,
                   transformer.Decode(prompt, adapter, cache, options.prompt_precision));
  while (true) {
    const TokenId id = SampleToken(logits, options.sampling, rng);
    if (options.stop_at_end && tokenizer.IsEndOfGeneration(id)) {
      result.stop = GenerateResult::Stop::kEnd;
      return result;
    }
    result.tokens.push_back(id);
    if (on_token && !on_token(id, tokenizer.TokenBytes(id))) {
      result.stop = GenerateResult::Stop::kCallback;
      return result;
    }
    if (static_cast<int64_t>(result.tokens.size()) == options.max_tokens) return result;
    if (cache.size() == cache.capacity()) {
      result.stop = GenerateResult::Stop::kContext;
      return result;
    }
    ASSIGN_OR_RETURN(logits, transformer.Decode({id}, adapter, cache));
  }
}

}  // namespace fedge
