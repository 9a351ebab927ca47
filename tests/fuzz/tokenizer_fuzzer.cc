// Any vocabulary is an error or a tokenizer that takes any text. Input: the text's length (2 bytes,
// little-endian), the text, a GGUF file.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/strings/match.h"
#include "common/base/status.h"
#include "common/formats/gguf.h"
#include "common/model/tokenizer.h"

namespace fedge {
namespace {

void RunOne(absl::string_view bytes) {
  if (bytes.size() < 2) return;
  const auto byte = [&](size_t i) { return static_cast<size_t>(static_cast<uint8_t>(bytes[i])); };
  const absl::string_view text = bytes.substr(2, byte(0) | byte(1) << 8);
  const auto file = GgufFile::Parse(bytes.substr(2 + text.size()), "fuzz.gguf");
  if (!file.ok()) return;
  const auto tokenizer = Tokenizer::FromGguf(**file);
  if (!tokenizer.ok()) {
    FEDGE_CHECK(absl::StrContains(tokenizer.status().message(), "fuzz.gguf"),
                tokenizer.status().message());
    return;
  }
  for (const bool special : {false, true}) {
    const std::vector<TokenId> ids = (*tokenizer)->Encode(text, {special, special, false});
    for (const TokenId id : ids) FEDGE_CHECK(id >= 0 && id < (*tokenizer)->vocab_size());
    FEDGE_CHECK(ids == (*tokenizer)->Encode(text, {special, special, false}));
    (*tokenizer)->Decode(ids, special);
  }
}

}  // namespace
}  // namespace fedge

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fedge::RunOne(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
