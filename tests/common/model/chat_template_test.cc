#include "common/model/chat_template.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/tiny_vocabulary.h"

namespace fedge {
namespace {

using ::fedge::testing::TinyBpe;
using ::fedge::testing::TinySpm;
using ::fedge::testing::TinyVocabulary;
using ::testing::ElementsAre;

const std::vector<ChatMessage>& Talk() {
  static const auto* const kTalk = new std::vector<ChatMessage>{{"system", "Be brief."},
                                                                {"user", " Hi there \n"},
                                                                {"assistant", "Hello!\n"},
                                                                {"user", "Bye"},
                                                                {"assistant", "See you"}};
  return *kTalk;
}

std::vector<ChatSpan> MustRender(ChatFormat format, const std::vector<ChatMessage>& messages,
                                 bool for_training) {
  auto spans = RenderChat(format, messages, for_training);
  EXPECT_TRUE(spans.ok()) << spans.status();
  return *std::move(spans);
}

std::string Text(const std::vector<ChatSpan>& spans) {
  std::string text;
  for (const ChatSpan& span : spans) text += span.text;
  return text;
}

std::string Rendered(ChatFormat format, bool for_training) {
  std::vector<ChatMessage> messages = Talk();
  if (!for_training) messages.pop_back();
  return Text(MustRender(format, messages, for_training));
}

// The trained stretches, one string each.
std::vector<std::string> Trained(ChatFormat format) {
  std::vector<std::string> result;
  bool before = false;
  for (const ChatSpan& span : MustRender(format, Talk(), true)) {
    if (span.trained && !before) result.emplace_back();
    if (span.trained) result.back() += span.text;
    before = span.trained;
  }
  return result;
}

TEST(ChatTemplateTest, RendersLlama2) {
  EXPECT_EQ(Rendered(ChatFormat::kLlama2, true),
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi there [/INST] Hello! </s>"
            "<s>[INST] Bye [/INST] See you </s>");
  EXPECT_EQ(Rendered(ChatFormat::kLlama2, false),
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi there [/INST] Hello! </s>"
            "<s>[INST] Bye [/INST]");
  EXPECT_THAT(Trained(ChatFormat::kLlama2), ElementsAre(" Hello! </s>", " See you </s>"));
}

TEST(ChatTemplateTest, RendersLlama3) {
  const std::string common =
      "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
      "<|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
      "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n";
  EXPECT_EQ(Rendered(ChatFormat::kLlama3, true), common + "See you<|eot_id|>");
  EXPECT_EQ(Rendered(ChatFormat::kLlama3, false), common);
  EXPECT_THAT(Trained(ChatFormat::kLlama3), ElementsAre("Hello!<|eot_id|>", "See you<|eot_id|>"));
}

TEST(ChatTemplateTest, RendersChatMl) {
  const std::string common =
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi there \n<|im_end|>\n"
      "<|im_start|>assistant\nHello!\n<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
      "<|im_start|>assistant\n";
  EXPECT_EQ(Rendered(ChatFormat::kChatMl, true), common + "See you<|im_end|>\n");
  EXPECT_EQ(Rendered(ChatFormat::kChatMl, false), common);
  EXPECT_THAT(Trained(ChatFormat::kChatMl), ElementsAre("Hello!\n<|im_end|>", "See you<|im_end|>"));
}

TEST(ChatTemplateTest, RendersGemma) {
  const std::string common =
      "<bos><start_of_turn>user\nBe brief.\n\nHi there<end_of_turn>\n"
      "<start_of_turn>model\nHello!<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n"
      "<start_of_turn>model\n";
  EXPECT_EQ(Rendered(ChatFormat::kGemma, true), common + "See you<end_of_turn>\n");
  EXPECT_EQ(Rendered(ChatFormat::kGemma, false), common);
  EXPECT_THAT(Trained(ChatFormat::kGemma),
              ElementsAre("Hello!<end_of_turn>", "See you<end_of_turn>"));
}

TEST(ChatTemplateTest, RendersPhi3) {
  const std::string common =
      "<|system|>\nBe brief.<|end|>\n<|user|>\n Hi there \n<|end|>\n"
      "<|assistant|>\nHello!\n<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n";
  EXPECT_EQ(Rendered(ChatFormat::kPhi3, true), common + "See you<|end|>\n<|endoftext|>");
  EXPECT_EQ(Rendered(ChatFormat::kPhi3, false), common);
  EXPECT_THAT(Trained(ChatFormat::kPhi3), ElementsAre("Hello!\n<|end|>", "See you<|end|>"));
}

TEST(ChatTemplateTest, RendersPlain) {
  const std::string common =
      "system: Be brief.\nuser: Hi there\nassistant: Hello!\nuser: Bye\nassistant:";
  EXPECT_EQ(Rendered(ChatFormat::kPlain, true), common + " See you\n");
  EXPECT_EQ(Rendered(ChatFormat::kPlain, false), common);
  EXPECT_THAT(Trained(ChatFormat::kPlain), ElementsAre(" Hello!\n", " See you\n"));
}

TEST(ChatTemplateTest, OnlyMarksAreControl) {
  for (const ChatFormat format : {ChatFormat::kLlama2, ChatFormat::kLlama3, ChatFormat::kChatMl,
                                  ChatFormat::kGemma, ChatFormat::kPhi3}) {
    const std::string content = "<|im_end|><end_of_turn></s><|eot_id|><|end|>";
    const auto spans =
        MustRender(format, {{"system", content}, {"user", content}, {"assistant", content}}, true);
    std::string outside_marks;
    for (const ChatSpan& span : spans) {
      if (!span.control) outside_marks += span.text;
    }
    size_t found = 0;
    for (size_t at = outside_marks.find(content); at != std::string::npos;
         at = outside_marks.find(content, at + 1)) {
      ++found;
    }
    EXPECT_EQ(found, 3u) << ChatFormatName(format);
  }
}

TEST(ChatTemplateTest, RecognizesTheFamilies) {
  const auto recognize = [](absl::string_view text) { return *RecognizeChatTemplate(text); };
  EXPECT_EQ(recognize(""), ChatFormat::kPlain);
  EXPECT_EQ(recognize(" \n"), ChatFormat::kPlain);
  EXPECT_EQ(recognize("{{'<|im_start|>' + message['role'] + '\\n' + '<|im_end|>'}}"),
            ChatFormat::kChatMl);
  EXPECT_EQ(recognize("{{'<|start_header_id|>' + role + '<|end_header_id|>' + '<|eot_id|>'}}"),
            ChatFormat::kLlama3);
  EXPECT_EQ(recognize("{{ '<start_of_turn>' + role + '\\n' }}{{ '<end_of_turn>\\n' }}"),
            ChatFormat::kGemma);
  EXPECT_EQ(recognize("{{'<|user|>\\n' + c + '<|end|>\\n'}}{{'<|assistant|>\\n'}}"),
            ChatFormat::kPhi3);
  EXPECT_EQ(recognize("{% set content = '<<SYS>>\\n' %}{{ bos_token + '[INST] ' }}"),
            ChatFormat::kLlama2);
}

TEST(ChatTemplateTest, NamesTheFamiliesForAForeignTemplate) {
  const auto format = RecognizeChatTemplate("{{ '[INST] ' + content + '[/INST]' }}");
  EXPECT_EQ(format.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(format.status().message(),
            "the model's chat template belongs to none of the known families (llama2, llama3, "
            "chatml, gemma, phi3); use \"prompt\"/\"completion\" or \"text\" records instead of "
            "\"messages\"");
}

TEST(ChatTemplateTest, DoesNotTakeRelativesForTheFamily) {
  for (const char* text :
       {"<|im_start|>user<|im_sep|>x<|im_end|>", "'<|' + role + '|>' + '<|end|>'",
        "<|user|>\n + eos_token + <|assistant|>"}) {
    EXPECT_EQ(RecognizeChatTemplate(text).status().code(), absl::StatusCode::kUnimplemented)
        << text;
  }
}

TEST(ChatTemplateTest, RejectsBadConversations) {
  const auto message = [](ChatFormat format, const std::vector<ChatMessage>& messages,
                          bool for_training = true) {
    const auto spans = RenderChat(format, messages, for_training);
    EXPECT_EQ(spans.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(spans.status().message());
  };
  EXPECT_EQ(message(ChatFormat::kChatMl, {}), "the conversation has no messages");
  EXPECT_EQ(message(ChatFormat::kChatMl, {{"user", "x"}, {"tool", "y"}}),
            "message 2: unknown role \"tool\"; use system, user or assistant");
  EXPECT_EQ(message(ChatFormat::kChatMl, {{"user", "x"}}),
            "the conversation has no assistant message, so there is nothing to train on");
  EXPECT_EQ(message(ChatFormat::kChatMl, {{"user", "x"}, {"system", "y"}, {"assistant", "z"}}),
            "message 2: only the first message may be of role \"system\"");
  EXPECT_EQ(message(ChatFormat::kLlama2, {{"user", "x"}, {"user", "y"}, {"assistant", "z"}}),
            "message 2: role \"user\" out of turn: a llama2 conversation alternates user, "
            "assistant, user, ...");
  EXPECT_EQ(message(ChatFormat::kGemma, {{"system", "x"}, {"assistant", "z"}}),
            "message 2: role \"assistant\" out of turn: a gemma conversation alternates user, "
            "assistant, user, ...");
  EXPECT_EQ(message(ChatFormat::kGemma, {{"system", "x"}}, false),
            "the conversation has a system message only");
}

TEST(EncodeSpansTest, ContentCannotInjectMarks) {
  TinyVocabulary v = TinyBpe({"<|im_start|>", "<|im_end|>"});
  const auto tokenizer = v.Load();
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto spans =
      MustRender(ChatFormat::kChatMl,
                 {{"user", "x<|im_end|>\n<|im_start|>"}, {"assistant", "<|im_end|>"}}, true);
  const EncodedSpans encoded = EncodeSpans(spans, **tokenizer);
  const TokenId start = (*tokenizer)->Find("<|im_start|>");
  const TokenId end = (*tokenizer)->Find("<|im_end|>");
  EXPECT_EQ(std::count(encoded.ids.begin(), encoded.ids.end(), start), 2);
  EXPECT_EQ(std::count(encoded.ids.begin(), encoded.ids.end(), end), 2);
  EXPECT_EQ((*tokenizer)->Decode(encoded.ids, true), Text(spans));
}

TEST(EncodeSpansTest, PromptIsTokenizedAsGenerationSeesIt) {
  const auto tokenizer = TinySpm().Load();
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto training =
      MustRender(ChatFormat::kLlama2, {{"user", "the"}, {"assistant", "python"}}, true);
  const auto prompt = MustRender(ChatFormat::kLlama2, {{"user", "the"}}, false);
  const EncodedSpans trained = EncodeSpans(training, **tokenizer);
  const EncodedSpans asked = EncodeSpans(prompt, **tokenizer);
  ASSERT_LT(asked.ids.size(), trained.ids.size());
  EXPECT_TRUE(std::equal(asked.ids.begin(), asked.ids.end(), trained.ids.begin()));
  // One BOS, though the model adds one and the template writes one; then, behind the prompt,
  // " python", " " and the end mark, trained.
  EXPECT_EQ(std::count(trained.ids.begin(), trained.ids.end(), (*tokenizer)->bos()), 1);
  const size_t n = asked.ids.size();
  ASSERT_EQ(trained.ids.size(), n + 3);
  EXPECT_EQ((*tokenizer)->TokenBytes(trained.ids[n]), " python");
  EXPECT_EQ(trained.ids[n + 2], (*tokenizer)->eos());
  for (size_t i = 0; i < trained.ids.size(); ++i) EXPECT_EQ(trained.trained[i], i >= n) << i;
}

TEST(EncodeSpansTest, NeighboursOfOneKindAreReadAsOneText) {
  const auto tokenizer = TinyBpe().Load();
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::vector<ChatSpan> joined = {{"p", false, true}, {"ython", false, false}};
  EXPECT_EQ(EncodeSpans(joined, **tokenizer).ids.size(), 1u);
  const std::vector<ChatSpan> apart = {{"p", false, false}, {"ython", true, false}};
  EXPECT_EQ(EncodeSpans(apart, **tokenizer).ids.size(), 3u);  // p, y, thon
}

}  // namespace
}  // namespace fedge
