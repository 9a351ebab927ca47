#include "common/model/chat_template.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

// Collects spans; neighbours of the same kind become one.
class SpanList {
 public:
  // A mark of the template.
  void Mark(absl::string_view text, bool trained = false) { Add(text, trained, true); }
  // What a person or the assistant wrote.
  void Content(absl::string_view text, bool trained = false) { Add(text, trained, false); }

  std::vector<ChatSpan> Take() { return std::move(spans_); }

 private:
  void Add(absl::string_view text, bool trained, bool control) {
    if (text.empty()) return;
    if (!spans_.empty() && spans_.back().trained == trained && spans_.back().control == control) {
      absl::StrAppend(&spans_.back().text, text);
      return;
    }
    ChatSpan span;
    span.text = std::string(text);
    span.trained = trained;
    span.control = control;
    spans_.push_back(std::move(span));
  }

  std::vector<ChatSpan> spans_;
};

absl::Status BadMessage(size_t index, absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat("message ", index + 1, ": ", reason));
}

absl::Status CheckMessages(ChatFormat format, absl::Span<const ChatMessage> messages,
                           bool for_training) {
  if (messages.empty()) return absl::InvalidArgumentError("the conversation has no messages");
  const bool alternates = format == ChatFormat::kLlama2 || format == ChatFormat::kGemma;
  const size_t first = messages[0].role == "system" ? 1 : 0;
  bool answered = false;
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role == "system") {
      if (i > 0) return BadMessage(i, "only the first message may be of role \"system\"");
      continue;
    }
    if (role != "user" && role != "assistant") {
      return BadMessage(i, absl::StrCat("unknown role \"", absl::CHexEscape(role.substr(0, 64)),
                                        "\"; use system, user or assistant"));
    }
    answered = answered || role == "assistant";
    if (alternates && (role == "user") != ((i - first) % 2 == 0)) {
      return BadMessage(i,
                        absl::StrCat("role \"", role, "\" out of turn: a ", ChatFormatName(format),
                                     " conversation alternates user, assistant, user, ..."));
    }
  }
  if (alternates && messages.size() == first) {
    return absl::InvalidArgumentError("the conversation has a system message only");
  }
  if (for_training && !answered) {
    return absl::InvalidArgumentError(
        "the conversation has no assistant message, so there is nothing to train on");
  }
  return absl::OkStatus();
}

absl::string_view Trim(absl::string_view text) { return absl::StripAsciiWhitespace(text); }

void RenderLlama2(absl::Span<const ChatMessage> messages, SpanList& spans) {
  absl::string_view system;
  bool has_system = false;
  for (const ChatMessage& message : messages) {
    if (message.role == "system") {
      system = message.content;
      has_system = true;
    } else if (message.role == "user") {
      spans.Mark("<s>[INST] ");
      if (has_system) {
        spans.Content("<<SYS>>\n");
        spans.Content(system);
        spans.Content("\n<</SYS>>\n\n");
        spans.Content(absl::StripTrailingAsciiWhitespace(message.content));
        has_system = false;
      } else {
        spans.Content(Trim(message.content));
      }
      spans.Mark(" [/INST]");
    } else {
      spans.Content(absl::StrCat(" ", Trim(message.content), " "), true);
      spans.Mark("</s>", true);
    }
  }
}

void RenderLlama3(absl::Span<const ChatMessage> messages, bool for_training, SpanList& spans) {
  spans.Mark("<|begin_of_text|>");
  for (const ChatMessage& message : messages) {
    const bool trained = message.role == "assistant";
    spans.Mark(absl::StrCat("<|start_header_id|>", message.role, "<|end_header_id|>\n\n"));
    spans.Content(Trim(message.content), trained);
    spans.Mark("<|eot_id|>", trained);
  }
  if (!for_training) spans.Mark("<|start_header_id|>assistant<|end_header_id|>\n\n");
}

void RenderChatMl(absl::Span<const ChatMessage> messages, bool for_training, SpanList& spans) {
  for (const ChatMessage& message : messages) {
    const bool trained = message.role == "assistant";
    spans.Mark(absl::StrCat("<|im_start|>", message.role, "\n"));
    spans.Content(message.content, trained);
    spans.Mark("<|im_end|>", trained);
    spans.Mark("\n");
  }
  if (!for_training) spans.Mark("<|im_start|>assistant\n");
}

void RenderGemma(absl::Span<const ChatMessage> messages, bool for_training, SpanList& spans) {
  spans.Mark("<bos>");
  absl::string_view system;
  bool has_system = false;
  for (const ChatMessage& message : messages) {
    if (message.role == "system") {
      system = message.content;
      has_system = true;
      continue;
    }
    const bool trained = message.role == "assistant";
    spans.Mark(absl::StrCat("<start_of_turn>", trained ? "model" : "user", "\n"));
    if (has_system) spans.Content(absl::StrCat(system, "\n\n"));
    has_system = false;
    spans.Content(Trim(message.content), trained);
    spans.Mark("<end_of_turn>", trained);
    spans.Mark("\n");
  }
  if (!for_training) spans.Mark("<start_of_turn>model\n");
}

void RenderPhi3(absl::Span<const ChatMessage> messages, bool for_training, SpanList& spans) {
  for (const ChatMessage& message : messages) {
    const bool trained = message.role == "assistant";
    spans.Mark(absl::StrCat("<|", message.role, "|>\n"));
    spans.Content(message.content, trained);
    spans.Mark("<|end|>", trained);
    spans.Mark("\n");
  }
  spans.Mark(for_training ? "<|endoftext|>" : "<|assistant|>\n");
}

// The space behind the colon belongs to the content, where a tokenizer wants it.
void RenderPlain(absl::Span<const ChatMessage> messages, bool for_training, SpanList& spans) {
  for (const ChatMessage& message : messages) {
    spans.Content(absl::StrCat(message.role, ":"));
    spans.Content(absl::StrCat(" ", Trim(message.content), "\n"), message.role == "assistant");
  }
  if (!for_training) spans.Content("assistant:");
}

}  // namespace

absl::string_view ChatFormatName(ChatFormat format) {
  switch (format) {
    case ChatFormat::kLlama2:
      return "llama2";
    case ChatFormat::kLlama3:
      return "llama3";
    case ChatFormat::kChatMl:
      return "chatml";
    case ChatFormat::kGemma:
      return "gemma";
    case ChatFormat::kPhi3:
      return "phi3";
    case ChatFormat::kPlain:
      return "plain";
  }
  return "unknown";
}

absl::StatusOr<ChatFormat> RecognizeChatTemplate(absl::string_view template_text) {
  const auto has = [&](absl::string_view mark) { return absl::StrContains(template_text, mark); };
  if (Trim(template_text).empty()) return ChatFormat::kPlain;
  // Phi-4's templates use ChatML's marks too, with <|im_sep|> in place of the line break.
  if (has("<|im_start|>") && has("<|im_end|>") && !has("<|im_sep|>")) return ChatFormat::kChatMl;
  if (has("<|start_header_id|>") && has("<|end_header_id|>")) return ChatFormat::kLlama3;
  if (has("<start_of_turn>") && has("<end_of_turn>")) return ChatFormat::kGemma;
  if (has("<|user|>") && has("<|assistant|>") && has("<|end|>")) return ChatFormat::kPhi3;
  // Mistral's templates use [INST] too, with other white space and no system block.
  if (has("[INST]") && has("<<SYS>>")) return ChatFormat::kLlama2;
  return absl::UnimplementedError(
      "the model's chat template belongs to none of the known families (llama2, llama3, chatml, "
      "gemma, phi3); use \"prompt\"/\"completion\" or \"text\" records instead of \"messages\"");
}

absl::StatusOr<std::vector<ChatSpan>> RenderChat(ChatFormat format,
                                                 absl::Span<const ChatMessage> messages,
                                                 bool for_training) {
  RETURN_IF_ERROR(CheckMessages(format, messages, for_training));
  SpanList spans;
  switch (format) {
    case ChatFormat::kLlama2:
      RenderLlama2(messages, spans);
      break;
    case ChatFormat::kLlama3:
      RenderLlama3(messages, for_training, spans);
      break;
    case ChatFormat::kChatMl:
      RenderChatMl(messages, for_training, spans);
      break;
    case ChatFormat::kGemma:
      RenderGemma(messages, for_training, spans);
      break;
    case ChatFormat::kPhi3:
      RenderPhi3(messages, for_training, spans);
      break;
    case ChatFormat::kPlain:
      RenderPlain(messages, for_training, spans);
      break;
  }
  return spans.Take();
}

EncodedSpans EncodeSpans(absl::Span<const ChatSpan> spans, const Tokenizer& tokenizer) {
  EncodedSpans encoded;
  bool after_special = true;
  for (size_t begin = 0; begin < spans.size();) {
    const bool trained = spans[begin].trained;
    std::vector<Tokenizer::TextPart> parts;
    size_t end = begin;
    for (; end < spans.size() && spans[end].trained == trained; ++end) {
      Tokenizer::TextPart part;
      part.text = spans[end].text;
      part.parse_special = spans[end].control;
      parts.push_back(part);
    }
    tokenizer.AppendParts(parts, after_special, encoded.ids);
    encoded.trained.resize(encoded.ids.size(), trained);
    begin = end;
  }
  const bool starts_with_bos = !encoded.ids.empty() && encoded.ids.front() == tokenizer.bos();
  if (tokenizer.adds_bos() && !starts_with_bos) {
    encoded.ids.insert(encoded.ids.begin(), tokenizer.bos());
    encoded.trained.insert(encoded.trained.begin(), false);
  }
  return encoded;
}

}  // namespace fedge
