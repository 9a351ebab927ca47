#include "client/transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/digest.h"
#include "common/base/rng.h"
#include "tests/client/fake_server.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;

class TransferTest : public ::testing::Test {
 protected:
  TransferTest() : transfer_(&server_, &clock_, RetryPolicy(), 1) {
    Rng rng(5);
    for (int i = 0; i < 300; ++i) bytes_.push_back(static_cast<char>(rng.Below(256)));
    ref_ = server_.Offer(bytes_);
    id_.set_sha256(Sha256Of(bytes_).Raw());
    id_.set_size_bytes(bytes_.size());
  }

  testing::FakeServer server_;
  ManualClock clock_;
  Transfer transfer_;
  std::string bytes_;  // 300 bytes: five chunks of 64
  v1::ContentRef ref_;
  v1::UploadId id_;
};

TEST_F(TransferTest, ResumesADownloadBrokenAtAnyChunk) {
  for (int chunks = 0; chunks <= 4; ++chunks) {
    server_.download_offsets.clear();
    server_.break_downloads_after = {chunks};
    const auto content = transfer_.Fetch("n", ref_, 1000);
    ASSERT_TRUE(content.ok()) << content.status();
    EXPECT_EQ(*content, bytes_);
    EXPECT_THAT(server_.download_offsets, ElementsAre(0, 64 * chunks));
  }
}

TEST_F(TransferTest, ADownloadThatMovesOnIsNeverGivenUp) {
  server_.break_downloads_after = {1, 1, 1, 1};
  EXPECT_TRUE(transfer_.Fetch("n", ref_, 1000).ok());
  EXPECT_THAT(server_.download_offsets, ElementsAre(0, 64, 128, 192, 256));
}

TEST_F(TransferTest, ADamagedPieceIsFetchedAgain) {
  server_.damage_download_chunk = {2};
  const auto content = transfer_.Fetch("n", ref_, 1000);
  ASSERT_TRUE(content.ok());
  EXPECT_EQ(*content, bytes_);
  EXPECT_THAT(server_.download_offsets, ElementsAre(0, 128));
}

TEST_F(TransferTest, ContentWithAnotherHashIsNeverHandedOut) {
  server_.content[ref_.sha256()][7] ^= 1;
  const auto content = transfer_.Fetch("n", ref_, 1000);
  EXPECT_EQ(content.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(server_.download_offsets, ElementsAre(0, 0, 0));
}

TEST_F(TransferTest, ContentOverTheLimitIsNotFetched) {
  EXPECT_EQ(transfer_.Fetch("n", ref_, 299).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(server_.download_offsets.empty());
}

TEST_F(TransferTest, ContentThatGoesOnPastItsSizeIsRefused) {
  server_.content[ref_.sha256()] += "more";
  EXPECT_EQ(transfer_.Fetch("n", ref_, 1000).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(TransferTest, ResumesAnUploadBrokenAtAnyByte) {
  for (const uint64_t taken : {0, 1, 64, 150, 299}) {
    testing::FakeServer server;
    Transfer transfer(&server, &clock_, RetryPolicy(), 1);
    server.break_uploads_after = {taken};
    const auto receipt = transfer.Submit(id_, {}, bytes_);
    ASSERT_TRUE(receipt.ok()) << receipt.status();
    EXPECT_EQ(receipt->verdict(), v1::UploadReceipt::ACCEPTED);
    EXPECT_EQ(server.received_whole, bytes_);
    EXPECT_THAT(server.upload_offsets, ElementsAre(0, taken));
  }
}

TEST_F(TransferTest, ALostReceiptIsAskedForAndTheUpdateCountsOnce) {
  server_.lose_receipts = 1;
  const auto receipt = transfer_.Submit(id_, {}, bytes_);
  ASSERT_TRUE(receipt.ok());
  EXPECT_EQ(receipt->verdict(), v1::UploadReceipt::ACCEPTED);
  EXPECT_EQ(server_.times_counted, 1);
  EXPECT_THAT(server_.upload_offsets, ElementsAre(0));
}

TEST_F(TransferTest, AnUploadWithoutVerdictIsNoSuccess) {
  server_.verdict = v1::UploadReceipt::VERDICT_UNSPECIFIED;
  server_.lose_receipts = 0;
  EXPECT_FALSE(transfer_.Submit(id_, {}, bytes_).value_or(v1::UploadReceipt()).verdict() ==
               v1::UploadReceipt::ACCEPTED);
}

TEST_F(TransferTest, PausesGrowWithinTheirJitterAndThenItGivesUp) {
  server_.check_in_errors.assign(10, absl::UnavailableError("no server at 127.0.0.1:1"));
  const auto response = transfer_.CheckIn({});
  EXPECT_EQ(response.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server_.check_ins.size(), 4u);
  // 1 + 2 + 4 seconds, each give or take a half.
  EXPECT_GE(clock_.Monotonic(), absl::Milliseconds(3500));
  EXPECT_LE(clock_.Monotonic(), absl::Milliseconds(10500));
}

TEST_F(TransferTest, TheSameSeedPausesTheSame) {
  ManualClock other;
  Transfer again(&server_, &other, RetryPolicy(), 1);
  server_.check_in_errors.assign(8, absl::UnavailableError("away"));
  EXPECT_FALSE(transfer_.CheckIn({}).ok());
  EXPECT_FALSE(again.CheckIn({}).ok());
  EXPECT_EQ(clock_.Monotonic(), other.Monotonic());
}

TEST_F(TransferTest, ARefusalIsNotRepeated) {
  server_.check_in_errors = {absl::FailedPreconditionError("another base model")};
  EXPECT_EQ(transfer_.CheckIn({}).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(server_.check_ins.size(), 1u);
  EXPECT_EQ(clock_.Monotonic(), absl::ZeroDuration());
}

TEST_F(TransferTest, StoppingEndsTheWaiting) {
  Transfer transfer(&server_, &clock_, RetryPolicy(), 1, [] { return true; });
  server_.check_in_errors.assign(8, absl::UnavailableError("away"));
  EXPECT_EQ(transfer.CheckIn({}).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(server_.check_ins.size(), 1u);
}

}  // namespace
}  // namespace fedge
