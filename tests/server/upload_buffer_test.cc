#include "server/upload_buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/rng.h"
#include "tests/server/temporary_dir.h"
#include "tests/testing/fault_env.h"

namespace fedge {
namespace {

using testing::FaultEnv;
using ::testing::HasSubstr;
using testing::TemporaryDir;

constexpr uint64_t kChunk = 64;
constexpr absl::StatusCode kNoSpace = absl::StatusCode::kResourceExhausted;

std::string Content(size_t size, uint64_t seed = 1) {
  Rng rng(seed);
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(rng.Below(256));
  return bytes;
}

UploadKey KeyOf(const std::string& content, std::string node = "node-00", uint64_t round = 1) {
  return {.run_id = "default",
          .round = round,
          .node_id = std::move(node),
          .sha256 = Sha256Of(content),
          .size_bytes = content.size()};
}

class UploadBufferTest : public ::testing::Test {
 protected:
  UploadBufferTest() { Open(); }

  void Open() {
    buffer_.reset();
    auto buffer = UploadBuffer::Open(dir_.File("uploads"), limits_, env_, clock_);
    FEDGE_CHECK(buffer.ok(), buffer.status().message());
    buffer_ = *std::move(buffer);
  }

  absl::StatusOr<std::optional<std::string>> Send(const std::string& content, uint64_t offset,
                                                  const UploadKey& key) {
    const std::string chunk = content.substr(offset, kChunk);
    return buffer_->Append(key, offset, chunk, Crc32c(chunk));
  }
  absl::StatusOr<std::optional<std::string>> Send(const std::string& content, uint64_t offset) {
    return Send(content, offset, KeyOf(content));
  }
  // From the committed offset to the end.
  absl::StatusOr<std::optional<std::string>> SendRest(const std::string& content) {
    absl::StatusOr<std::optional<std::string>> result;
    for (uint64_t at = buffer_->CommittedBytes(KeyOf(content)); at < content.size(); at += kChunk) {
      result = Send(content, at);
      if (!result.ok()) return result;
    }
    return result;
  }
  size_t Files() { return Env::Posix()->ListDir(dir_.File("uploads"))->size(); }

  UploadLimits limits_{.max_upload_bytes = 4096,
                       .max_chunk_bytes = 128,
                       .max_total_bytes = 3000,
                       .max_open_per_node = 2,
                       .lifetime = absl::Minutes(20)};
  TemporaryDir dir_;
  FaultEnv env_;
  ManualClock clock_;
  std::unique_ptr<UploadBuffer> buffer_;
};

TEST_F(UploadBufferTest, ReturnsTheWholeAfterTheLastChunk) {
  const std::string content = Content(1000);
  for (uint64_t at = 0; at < content.size(); at += kChunk) {
    EXPECT_EQ(buffer_->CommittedBytes(KeyOf(content)), at);
    const auto result = Send(content, at);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->has_value(), at + kChunk >= content.size());
    if (result->has_value()) {
      EXPECT_EQ(**result, content);
    }
  }
  EXPECT_EQ(**buffer_->TakeIfWhole(KeyOf(content)), content);  // until it is stored elsewhere
  buffer_->Remove(KeyOf(content));
  EXPECT_EQ(buffer_->open_uploads(), 0u);
  EXPECT_EQ(buffer_->reserved_bytes(), 0u);
  EXPECT_EQ(Files(), 0u);
}

TEST_F(UploadBufferTest, NeedsNoFileForOneChunk) {
  const std::string content = Content(60);
  env_.FailFrom(1, kNoSpace, FaultEnv::Span::kForEver);
  const auto result = Send(content, 0);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(**result, content);
}

TEST_F(UploadBufferTest, ResumesAtEveryChunkBoundaryOverARestart) {
  const std::string content = Content(640);
  for (uint64_t stop = kChunk; stop <= content.size() - kChunk; stop += kChunk) {
    for (uint64_t at = 0; at < stop; at += kChunk) ASSERT_TRUE(Send(content, at).ok());
    Open();
    ASSERT_EQ(buffer_->CommittedBytes(KeyOf(content)), stop);
    const auto result = SendRest(content);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_EQ(**result, content);
    buffer_->Remove(KeyOf(content));
  }
}

TEST_F(UploadBufferTest, IgnoresChunksItHoldsAndRefusesGapsAndOverlaps) {
  const std::string content = Content(1000);
  ASSERT_TRUE(Send(content, 0).ok());
  ASSERT_TRUE(Send(content, 64).ok());
  EXPECT_TRUE(Send(content, 0).ok());
  EXPECT_EQ(buffer_->CommittedBytes(KeyOf(content)), 128u);
  const auto gap = Send(content, 192);
  EXPECT_EQ(gap.status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(gap.status().message()), HasSubstr("128 bytes are held, go on there"));
  EXPECT_EQ(Send(content, 100).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(**SendRest(content), content);
}

TEST_F(UploadBufferTest, RefusesWrongCrcAndGoesOn) {
  const std::string content = Content(300);
  ASSERT_TRUE(Send(content, 0).ok());
  const std::string chunk = content.substr(64, kChunk);
  EXPECT_EQ(buffer_->Append(KeyOf(content), 64, chunk, Crc32c(chunk) ^ 1).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(buffer_->CommittedBytes(KeyOf(content)), 64u);
  EXPECT_EQ(**SendRest(content), content);
}

TEST_F(UploadBufferTest, DropsTheBytesOfAWrongDigest) {
  const std::string content = Content(300);
  UploadKey key = KeyOf(content);
  key.sha256 = Sha256Of("something else");
  absl::StatusOr<std::optional<std::string>> result;
  for (uint64_t at = 0; at < content.size(); at += kChunk) result = Send(content, at, key);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(buffer_->CommittedBytes(key), 0u);
  EXPECT_EQ(Files(), 0u);
  const std::string small = Content(50);
  key.size_bytes = small.size();
  EXPECT_EQ(Send(small, 0, key).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(UploadBufferTest, EnforcesItsLimits) {
  const std::string content = Content(1000);
  const auto code = [&](const UploadKey& key, uint64_t offset, const std::string& chunk) {
    return buffer_->Append(key, offset, chunk, Crc32c(chunk)).status().code();
  };
  UploadKey key = KeyOf(content);
  key.size_bytes = limits_.max_upload_bytes + 1;
  EXPECT_EQ(code(key, 0, "x"), absl::StatusCode::kInvalidArgument);
  key.size_bytes = 0;
  EXPECT_EQ(code(key, 0, "x"), absl::StatusCode::kInvalidArgument);
  key.size_bytes = 1000;
  EXPECT_EQ(code(key, 0, ""), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(key, 0, std::string(129, 'x')), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(key, 999, "xy"), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(key, 1001, "x"), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(key, ~uint64_t{0}, "x"), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(buffer_->open_uploads(), 0u);
}

TEST_F(UploadBufferTest, KeepsTheNewestUploadsOfANode) {
  const std::string a = Content(300, 1), b = Content(300, 2), c = Content(300, 3);
  ASSERT_TRUE(Send(a, 0).ok());
  clock_.Advance(absl::Seconds(1));
  ASSERT_TRUE(Send(b, 0).ok());
  clock_.Advance(absl::Seconds(1));
  ASSERT_TRUE(Send(c, 0).ok());
  EXPECT_EQ(buffer_->CommittedBytes(KeyOf(a)), 0u);
  EXPECT_EQ(buffer_->CommittedBytes(KeyOf(b)), 64u);
  EXPECT_EQ(buffer_->CommittedBytes(KeyOf(c)), 64u);
  ASSERT_TRUE(Send(a, 0, KeyOf(a, "another node")).ok());
  EXPECT_EQ(buffer_->open_uploads(), 3u);
  EXPECT_EQ(Files(), 3u);
}

TEST_F(UploadBufferTest, RefusesUploadsBeyondTheTotal) {
  const std::string content = Content(1400);
  ASSERT_TRUE(Send(content, 0, KeyOf(content, "a")).ok());
  ASSERT_TRUE(Send(content, 0, KeyOf(content, "b")).ok());
  EXPECT_EQ(buffer_->reserved_bytes(), 2800u);
  EXPECT_EQ(Send(content, 0, KeyOf(content, "c")).status().code(),
            absl::StatusCode::kResourceExhausted);
  buffer_->Remove(KeyOf(content, "a"));
  EXPECT_TRUE(Send(content, 0, KeyOf(content, "c")).ok());
}

TEST_F(UploadBufferTest, RemovesStaleUploads) {
  const std::string a = Content(300, 1), b = Content(300, 2);
  ASSERT_TRUE(Send(a, 0).ok());
  clock_.Advance(absl::Minutes(19));
  ASSERT_TRUE(Send(b, 0).ok());
  buffer_->RemoveStale();
  EXPECT_EQ(buffer_->open_uploads(), 2u);
  clock_.Advance(absl::Minutes(1));
  buffer_->RemoveStale();
  EXPECT_EQ(buffer_->CommittedBytes(KeyOf(a)), 0u);
  EXPECT_EQ(buffer_->CommittedBytes(KeyOf(b)), 64u);
  Open();  // parts of an earlier process too
  clock_.Advance(absl::Minutes(20));
  buffer_->RemoveStale();
  EXPECT_EQ(buffer_->open_uploads(), 0u);
  EXPECT_EQ(Files(), 0u);
}

TEST_F(UploadBufferTest, TakesAnUploadThatWasWholeBeforeARestart) {
  const std::string content = Content(192);
  ASSERT_TRUE(Send(content, 0).ok());
  ASSERT_TRUE(Send(content, 64).ok());
  EXPECT_FALSE(buffer_->TakeIfWhole(KeyOf(content))->has_value());
  env_.FailFrom(4, kNoSpace, FaultEnv::Span::kOnce);  // open, append, close, then reading it back
  EXPECT_FALSE(Send(content, 128).ok());
  env_.Heal();
  Open();
  EXPECT_EQ(buffer_->CommittedBytes(KeyOf(content)), 192u);
  EXPECT_EQ(**buffer_->TakeIfWhole(KeyOf(content)), content);
  buffer_->Remove(KeyOf(content));
  EXPECT_EQ(Files(), 0u);
}

TEST_F(UploadBufferTest, SurvivesAnyFailingOperation) {
  const std::string content = Content(320);
  for (int operation = 1;; ++operation) {
    env_.FailFrom(operation, kNoSpace, FaultEnv::Span::kOnce);
    int failures = 0;
    std::optional<std::string> whole;
    for (int attempt = 0; attempt < 3 && !whole; ++attempt) {
      uint64_t at = buffer_->CommittedBytes(KeyOf(content));
      if (at == content.size()) {
        const auto taken = buffer_->TakeIfWhole(KeyOf(content));
        ASSERT_TRUE(taken.ok());
        whole = *taken;
        break;
      }
      const auto result = SendRest(content);
      if (result.ok()) {
        whole = *result;
      } else {
        EXPECT_EQ(result.status().code(), absl::StatusCode::kResourceExhausted);
        ++failures;
      }
    }
    ASSERT_TRUE(whole.has_value()) << "operation " << operation;
    EXPECT_EQ(*whole, content);
    EXPECT_LE(failures, 1);
    const bool reached = env_.triggered();
    env_.Heal();
    Open();
    buffer_->Remove(KeyOf(content));
    if (!reached) break;
    ASSERT_LT(operation, 100);
  }
}

}  // namespace
}  // namespace fedge
