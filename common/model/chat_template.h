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

// A stretch of rendered text, and whether the loss falls on its tokens (assistant content and the
// mark that ends it).
struct ChatSpan {
  std::string text;
  bool trained = false;
};

// InvalidArgument: unknown role, a conversation without an assistant message when `for_training`.
// With `for_training` false the text ends with the mark that opens the assistant's turn.
absl::StatusOr<std::vector<ChatSpan>> RenderChat(ChatFormat format,
                                                 absl::Span<const ChatMessage> messages,
                                                 bool for_training);

}  // namespace fedge

#endif  // FEDGE_COMMON_MODEL_CHAT_TEMPLATE_H_
