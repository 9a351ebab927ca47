#include "tools/prepare/tokenizer_data.h"

#include "common/base/status.h"

namespace fedge {

void WriteTokenizer(const TokenizerData& data, GgufWriter& writer) {
  FEDGE_CHECK(data.types.size() == data.pieces.size());
  FEDGE_CHECK(data.scores.empty() || data.scores.size() == data.pieces.size());
  writer.SetString("tokenizer.ggml.model", data.model);
  writer.SetString("tokenizer.ggml.pre", data.pre);
  writer.SetStrings("tokenizer.ggml.tokens", data.pieces);
  if (!data.scores.empty()) writer.SetFloat32s("tokenizer.ggml.scores", data.scores);
  writer.SetInt32s("tokenizer.ggml.token_type", data.types);
  if (!data.merges.empty()) writer.SetStrings("tokenizer.ggml.merges", data.merges);
  const auto set_id = [&](absl::string_view key, const std::optional<TokenId>& id) {
    if (id.has_value()) writer.SetUint32(key, static_cast<uint32_t>(*id));
  };
  set_id("tokenizer.ggml.bos_token_id", data.bos);
  set_id("tokenizer.ggml.eos_token_id", data.eos);
  set_id("tokenizer.ggml.unknown_token_id", data.unknown);
  set_id("tokenizer.ggml.padding_token_id", data.padding);
  const auto set_flag = [&](absl::string_view key, const std::optional<bool>& flag) {
    if (flag.has_value()) writer.SetBool(key, *flag);
  };
  set_flag("tokenizer.ggml.add_bos_token", data.add_bos);
  set_flag("tokenizer.ggml.add_eos_token", data.add_eos);
  set_flag("tokenizer.ggml.add_space_prefix", data.add_space_prefix);
  if (!data.chat_template.empty()) {
    writer.SetString("tokenizer.chat_template", data.chat_template);
  }
}

std::string ByteLevelCharacter(uint8_t byte) {
  const auto is_printable = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b != 173); };
  int code = byte;
  if (!is_printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += is_printable(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

}  // namespace fedge
