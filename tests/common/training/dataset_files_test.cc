#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/env.h"
#include "common/training/dataset.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class DatasetFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        JoinPath(::testing::TempDir(),
                 absl::StrCat("dataset_files_",
                              ::testing::UnitTest::GetInstance()->current_test_info()->name()));
    ASSERT_TRUE(env_.Remove(folder_).ok() || !env_.Exists(folder_));
    ASSERT_TRUE(env_.CreateDirs(folder_).ok());
  }
  void TearDown() override { EXPECT_TRUE(env_.Remove(folder_).ok()); }

  std::string Write(absl::string_view name, absl::string_view content) {
    const std::string path = JoinPath(folder_, name);
    EXPECT_TRUE(env_.CreateDirs(DirName(path)).ok());
    EXPECT_TRUE(env_.WriteFileAtomic(path, content).ok());
    return path;
  }

  absl::StatusOr<std::vector<Record>> Read(absl::string_view path) {
    return ReadRecords(path, ChatFormat::kChatMl, limits_, env_);
  }

  std::vector<Record> MustRead(absl::string_view path) {
    auto records = Read(path);
    EXPECT_TRUE(records.ok()) << records.status();
    return records.ok() ? *std::move(records) : std::vector<Record>();
  }

  // The one-line file's error, without "path:1: ".
  std::string LineError(absl::string_view line) {
    const std::string path = Write("line.jsonl", line);
    const auto records = Read(path);
    EXPECT_EQ(records.status().code(), absl::StatusCode::kInvalidArgument) << line;
    const std::string message(records.status().message());
    const std::string place = absl::StrCat(path, ":1: ");
    EXPECT_EQ(message.substr(0, place.size()), place);
    return message.substr(std::min(message.size(), place.size()));
  }

  Env& env_ = *Env::Posix();
  DatasetLimits limits_;
  std::string folder_;
};

TEST_F(DatasetFilesTest, ReadsTheThreeKindsOfLines) {
  const auto records = MustRead(Write(
      "data.jsonl",
      "\xef\xbb\xbf{\"text\": \"one\", \"node\": \"a\", \"id\": \"x\"}\r\n\n"
      "{\"prompt\": \"two\", \"completion\": \" 2\", \"node\": 7, \"id\": -8, \"other\": [1]}\n"
      "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, "
      "{\"role\": \"assistant\", \"content\": \"ho\"}]}"));
  ASSERT_THAT(records, SizeIs(3));
  EXPECT_EQ(records[0].node, "a");
  EXPECT_EQ(records[0].id, "x");
  EXPECT_FALSE(records[0].has_completion);
  ASSERT_THAT(records[0].spans, SizeIs(1));
  EXPECT_EQ(records[0].spans[0].text, "one");
  EXPECT_TRUE(records[0].spans[0].trained);
  EXPECT_FALSE(records[0].spans[0].control);

  EXPECT_EQ(records[1].node, "7");
  EXPECT_EQ(records[1].id, "-8");
  EXPECT_TRUE(records[1].has_completion);
  ASSERT_THAT(records[1].spans, SizeIs(2));
  EXPECT_FALSE(records[1].spans[0].trained);
  EXPECT_EQ(records[1].spans[1].text, " 2");
  EXPECT_TRUE(records[1].spans[1].trained);

  EXPECT_EQ(records[2].node, "");
  EXPECT_THAT(records[2].id, SizeIs(16));
  std::string text;
  for (const RecordSpan& span : records[2].spans) text += span.text;
  EXPECT_EQ(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n");
}

TEST_F(DatasetFilesTest, EqualRecordsWithoutIdShareOne) {
  const auto records =
      MustRead(Write("data.jsonl",
                     "{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": \"a\", \"node\": \"n\"}\n"
                     "{\"prompt\": \"a\", \"completion\": \"\"}\n"));
  ASSERT_THAT(records, SizeIs(4));
  EXPECT_EQ(records[0].id, records[2].id);
  EXPECT_NE(records[0].id, records[1].id);
  EXPECT_NE(records[0].id, records[3].id);
}

TEST_F(DatasetFilesTest, BrokenLine17IsNamed) {
  std::string lines;
  for (int i = 1; i <= 20; ++i) {
    absl::StrAppend(&lines, i == 17 ? "{\"text\": 5}" : "{\"text\": \"fine\"}", "\n");
  }
  const std::string path = Write("data.jsonl", lines);
  const auto records = Read(path);
  EXPECT_EQ(records.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(records.status().message(), path + ":17: \"text\" must be a string, not number");
}

TEST_F(DatasetFilesTest, BrokenLinesSayWhy) {
  EXPECT_EQ(LineError("{\"text\": \"x\""), "not valid JSON at byte 13 of the line");
  EXPECT_EQ(LineError("hello"), "not valid JSON at byte 1 of the line");
  EXPECT_EQ(LineError("{\"text\": \"\\ud800\"}"), "not valid JSON at byte 17 of the line");
  EXPECT_EQ(LineError("{\"text\": \"x\", \"n\": 1e999}"), "not valid JSON at byte 24 of the line");
  EXPECT_EQ(LineError("[1, 2]"), "must be a JSON object, not array");
  EXPECT_EQ(LineError("{}"),
            "has none of \"text\", \"prompt\" with \"completion\", and \"messages\"");
  EXPECT_EQ(LineError("{\"text\": \"a\", \"prompt\": \"b\", \"completion\": \"c\"}"),
            "has more than one of \"text\", \"prompt\" with \"completion\", and \"messages\"");
  EXPECT_EQ(LineError("{\"prompt\": \"a\"}"), "no \"completion\"");
  EXPECT_EQ(LineError("{\"completion\": \"a\"}"), "no \"prompt\"");
  EXPECT_EQ(LineError("{\"prompt\": \"a\", \"completion\": null}"),
            "\"completion\" must be a string, not null");
  EXPECT_EQ(LineError("{\"text\": \"a\", \"node\": 1.5}"),
            "\"node\" must be a string or an integer, not number");
  EXPECT_EQ(LineError("{\"text\": \"a\", \"id\": true}"),
            "\"id\" must be a string or an integer, not boolean");
  EXPECT_EQ(LineError(absl::StrCat("{\"text\": \"a\", \"node\": \"", std::string(257, 'n'), "\"}")),
            "\"node\" has 257 bytes, more than the limit 256");
  EXPECT_EQ(LineError("{\"messages\": {}}"), "\"messages\" must be an array, not object");
  EXPECT_EQ(LineError("{\"messages\": []}"), "the conversation has no messages");
  EXPECT_EQ(LineError("{\"messages\": [3]}"), "message 1 must be an object, not number");
  EXPECT_EQ(LineError("{\"messages\": [{\"role\": \"user\"}]}"), "message 1: no \"content\"");
  EXPECT_EQ(LineError("{\"messages\": [{\"role\": 1, \"content\": \"x\"}]}"),
            "message 1: \"role\" must be a string, not number");
  EXPECT_EQ(LineError("{\"messages\": [{\"role\": \"judge\", \"content\": \"x\"}]}"),
            "message 1: unknown role \"judge\"; use system, user or assistant");
}

TEST_F(DatasetFilesTest, BytesThatAreNotUtf8AreNamed) {
  EXPECT_EQ(LineError("{\"text\": \"a\xff\"}"), "byte 12 (0xff) is not UTF-8");
  EXPECT_EQ(LineError("{\"text\": \"\xc0\xaf\"}"), "byte 11 (0xc0) is not UTF-8");      // overlong
  EXPECT_EQ(LineError("{\"text\": \"\xed\xa0\x80\"}"), "byte 11 (0xed) is not UTF-8");  // surrogate
  EXPECT_EQ(LineError("{\"text\": \"\xf4\x90\x80\x80\"}"), "byte 11 (0xf4) is not UTF-8");
  EXPECT_EQ(LineError("{\"text\": \"\xe2\x82\"}"), "byte 11 (0xe2) is not UTF-8");
  const std::string path = Write("data.txt", "fine\nalso fine\nabc\x80\n");
  const auto records = Read(path);
  EXPECT_EQ(records.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(records.status().message(),
            path + ":3: byte 4 (0x80) is not UTF-8; convert the file to UTF-8");
}

TEST_F(DatasetFilesTest, DeepJsonIsOnlyAnError) {
  EXPECT_EQ(LineError(std::string(1 << 20, '[')), "not valid JSON at byte 1048577 of the line");
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  EXPECT_EQ(LineError(deep), "must be a JSON object, not array");
}

TEST_F(DatasetFilesTest, LimitsAreNamed) {
  limits_.max_line_bytes = 20;
  std::string path = Write("data.jsonl", "{\"text\": \"short\"}\n{\"text\": \"much longer\"}\n");
  EXPECT_EQ(Read(path).status(),
            absl::ResourceExhaustedError(
                path + ":2: the line has 23 bytes, more than the limit 20; split the record"));
  limits_ = DatasetLimits();
  limits_.max_records = 1;
  EXPECT_EQ(Read(path).status(), absl::ResourceExhaustedError(
                                     path + ":2: more than the limit of 1 records; use less data"));
  limits_ = DatasetLimits();
  limits_.max_file_bytes = 10;
  EXPECT_EQ(Read(path).status(),
            absl::ResourceExhaustedError(
                path + ": 42 bytes exceed the limit of 10 bytes a data file; split the file"));
}

TEST_F(DatasetFilesTest, PlainTextBecomesRecordsAtBlankLines) {
  const std::string a(900, 'a');
  const std::string b(900, 'b');
  const std::string c(900, 'c');
  const auto records = MustRead(
      Write("notes.txt", absl::StrCat("\n\n", a, "\r\n \t\r\n\r\n", b, "\n\n\n", c, "\n")));
  ASSERT_THAT(records, SizeIs(2));
  EXPECT_EQ(records[0].spans[0].text, a + "\n\n" + b);
  EXPECT_EQ(records[1].spans[0].text, c);
  EXPECT_EQ(records[0].node, "notes.txt");
  EXPECT_TRUE(records[0].spans[0].trained);
}

TEST_F(DatasetFilesTest, LongParagraphsAreCutAtLinesThenSpacesThenCharacters) {
  std::string lines;
  for (int i = 0; i < 100; ++i) absl::StrAppend(&lines, "line ", i, " of the song\n");
  std::string words;
  for (int i = 0; i < 600; ++i) absl::StrAppend(&words, "word", i, " ");
  std::string letters;
  for (int i = 0; i < 2001; ++i) letters += "\xe2\x82\xac";
  const auto records =
      MustRead(Write("long.txt", absl::StrCat(lines, "\n", words, "\n\n", letters, "\n")));
  std::string joined;
  for (const Record& record : records) {
    const std::string& text = record.spans[0].text;
    EXPECT_LE(text.size(), 2000u);
    EXPECT_FALSE(text.empty());
    EXPECT_NE(static_cast<unsigned char>(text[0]) & 0xC0, 0x80);  // no broken character in front
    joined += text;
  }
  const auto only_ink = [](std::string text) {
    text.erase(std::remove_if(text.begin(), text.end(), [](char ch) { return ch == '\n'; }),
               text.end());
    return text;
  };
  EXPECT_EQ(only_ink(joined), only_ink(lines + words + letters));
}

TEST_F(DatasetFilesTest, FoldersAreReadInOrderWithFilesAsNodes) {
  Write("b.txt", "bee");
  Write("a/z.md", "zed");
  Write("a/named.jsonl", "{\"text\": \"n\", \"node\": \"someone\"}\n{\"text\": \"o\"}\n");
  Write("a/unnamed.jsonl", "{\"text\": \"u\"}\n");
  Write("ignored.json", "{\"not\": \"data\"}");
  Write("ignored.png", "\xff");
  Write(".hidden.txt", "no");
  std::vector<std::string> seen;
  for (const Record& record : MustRead(folder_ + "/")) {
    seen.push_back(absl::StrCat(record.node, "=", record.spans[0].text));
  }
  EXPECT_THAT(seen, ElementsAre("someone=n", "=o", "a/unnamed.jsonl=u", "a/z.md=zed", "b.txt=bee"));
}

TEST_F(DatasetFilesTest, SaysWhenThereIsNothingToRead) {
  EXPECT_EQ(Read(JoinPath(folder_, "absent.jsonl")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Read(folder_).status(),
            absl::NotFoundError(
                folder_ + ": no data in this folder; put *.jsonl, *.txt or *.md files there"));
  EXPECT_THAT(MustRead(Write("empty.jsonl", "")), SizeIs(0));
  EXPECT_THAT(MustRead(Write("empty.txt", "\n \n")), SizeIs(0));
}

}  // namespace
}  // namespace fedge
