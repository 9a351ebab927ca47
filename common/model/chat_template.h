// Conversations as the instruction-tuned model families write them. Templates are recognised by
// their marks (Jinja is never executed: it is code from an untrusted file).
#ifndef FEDGE_COMMON_MODEL_CHAT_TEMPLATE_H_
#define FEDGE_COMMON_MODEL_CHAT_TEMPLATE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/model/tokenizer.h"

namespace fedge {

enum class ChatFormat { kLlama2, kLlama3, kChatMl, kGemma, kPhi3, kPlain };
absl::string_view ChatFormatName(ChatFormat format);

// The family whose marks the template text holds; kPlain ("role: content" lines) when it is empty;
// Unimplemented for a non-empty template of no known family.
absl::StatusOr<ChatFormat> RecognizeChatTemplate(absl::string_view template_text);

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

// A stretch of rendered text.
struct ChatSpan {
  std::string text;
  // Whether the loss falls on its tokens (assistant content and the mark that ends it).
  bool trained = false;
  // A mark of the template: only here is text such as "<|im_end|>" the control token. What people
  // wrote is never parsed for specials, so content cannot end its turn or open another's.
  bool control = false;
};

// The spans joined are what the family's template in Hugging Face renders (BOS mark included), with
// these choices where templates of one family differ: Llama 3 without the dated system block of
// 3.1+; ChatML without a default system prompt; Gemma with the system prompt in front of the first
// user turn, as Gemma 3; Phi-3 as of July 2024 (own system turn, final "<|endoftext|>").
// InvalidArgument, naming the message: unknown role, no messages, a conversation without an
// assistant message when `for_training`, a system message that is not the first, roles that do not
// alternate (Llama 2 and Gemma, whose templates refuse them too). With `for_training` false the
// text ends with the mark that opens the assistant's turn.
absl::StatusOr<std::vector<ChatSpan>> RenderChat(ChatFormat format,
                                                 absl::Span<const ChatMessage> messages,
                                                 bool for_training);

// Token ids of spans, and which of them are trained.
struct EncodedSpans {
  std::vector<TokenId> ids;
  std::vector<bool> trained;  // as many as ids
};

// BOS in front where the model adds one (once, also when the spans begin with its mark); no EOS.
// Neighbouring spans are read as one text as far as `trained` is the same, and cut where it
// changes: the tokens of a prompt are those that generation sees, whatever completion follows.
// SentencePiece's dummy space stands at the start and behind special tokens only, never at a cut.
EncodedSpans EncodeSpans(absl::Span<const ChatSpan> spans, const Tokenizer& tokenizer);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_CHAT_TEMPLATE_H_
