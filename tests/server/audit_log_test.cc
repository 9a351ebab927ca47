#include "server/audit_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace fedge {
namespace {

using ::testing::HasSubstr;

std::vector<AuditRecord> Chain(int records) {
  std::vector<AuditRecord> chain;
  AuditRecord last;
  for (int i = 0; i < records; ++i) {
    AuditEntry entry;
    entry.when = absl::FromUnixSeconds(1'700'000'000 + i);
    entry.run_id = "run";
    entry.action = "publish";
    entry.detail = absl::StrCat("{\"version\":", i, "}");
    last = NextAuditRecord(last, entry);
    chain.push_back(last);
  }
  return chain;
}

TEST(AuditLogTest, AChainHolds) {
  const std::vector<AuditRecord> chain = Chain(5);
  EXPECT_TRUE(VerifyAudit({}, chain).ok());
  EXPECT_EQ(chain[0].previous, Digest());
  EXPECT_EQ(chain[4].number, 5u);
  // In pieces, too.
  EXPECT_TRUE(VerifyAudit(chain[1], absl::MakeConstSpan(chain).subspan(2)).ok());
}

TEST(AuditLogTest, NamesTheRecordThatWasChanged) {
  const auto change = [](void (*what)(AuditRecord&)) {
    std::vector<AuditRecord> chain = Chain(5);
    what(chain[2]);
    return VerifyAudit({}, chain);
  };
  const absl::Status detail = change([](AuditRecord& r) { r.entry.detail = "{\"version\":9}"; });
  EXPECT_TRUE(absl::IsDataLoss(detail));
  EXPECT_THAT(std::string(detail.message()), HasSubstr("audit log: record 3: was changed"));
  for (const absl::Status& status :
       {change([](AuditRecord& r) { r.entry.when += absl::Microseconds(1); }),
        change([](AuditRecord& r) { r.entry.actor = "nobody"; }),
        change([](AuditRecord& r) { r.entry.run_id = "other"; }),
        change([](AuditRecord& r) { r.entry.action = "refuse"; }),
        change([](AuditRecord& r) { r.previous.bytes[0] ^= 1; }),
        change([](AuditRecord& r) { r.hash.bytes[31] ^= 1; })}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr("record 3"));
  }
}

TEST(AuditLogTest, NamesTheRecordAfterOneThatWasMadeAnew) {
  std::vector<AuditRecord> chain = Chain(5);
  chain[2].entry.detail = "{}";
  chain[2].hash = AuditHash(chain[2]);
  EXPECT_THAT(std::string(VerifyAudit({}, chain).message()),
              HasSubstr("audit log: record 4: follows a record with the hash"));
}

TEST(AuditLogTest, NamesAGap) {
  std::vector<AuditRecord> chain = Chain(5);
  chain.erase(chain.begin() + 1);
  EXPECT_EQ(VerifyAudit({}, chain).message(),
            "audit log: record 2: is missing, record 3 stands in its place");
  chain = Chain(5);
  chain.erase(chain.begin());
  EXPECT_THAT(std::string(VerifyAudit({}, chain).message()), HasSubstr("record 1: is missing"));
}

TEST(AuditLogTest, NamesAVersionThatIsNotOnRecord) {
  const Digest one = Sha256Of("one"), two = Sha256Of("two");
  AuditEntry entry;
  entry.run_id = "run";
  entry.detail = absl::StrCat("{\"version\":1,\"manifest\":\"", one.Hex(), "\"}");
  std::vector<AuditRecord> log = Chain(2);
  log.push_back(NextAuditRecord(log.back(), entry));
  EXPECT_TRUE(VerifyPublished(log, {{"run", 1, one}}).ok());
  const absl::Status cut = VerifyPublished(log, {{"run", 1, one}, {"run", 2, two}});
  EXPECT_TRUE(absl::IsDataLoss(cut));
  EXPECT_THAT(std::string(cut.message()), HasSubstr("version 2 of run 'run'"));
  EXPECT_FALSE(VerifyPublished(log, {{"other", 1, one}}).ok());
}

TEST(AuditLogTest, FieldsDoNotRunIntoEachOther) {
  AuditRecord a, b;
  a.entry.run_id = "ab";
  a.entry.actor = "c";
  b.entry.run_id = "a";
  b.entry.actor = "bc";
  EXPECT_NE(AuditHash(a), AuditHash(b));
}

}  // namespace
}  // namespace fedge
