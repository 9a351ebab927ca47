// Files of the state folder with bits, pages or ends gone: a server finds it at its start, says so,
// and never serves what was not published.
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "tests/server/federation_test_rig.h"

namespace fedge {
namespace {

using testing::FederationRig;
using testing::NodeName;

using Files = std::map<std::string, std::string>;  // by path below the state folder

Files ReadAll(const FederationRig& rig) {
  Files files;
  for (const std::string& folder : {std::string(), std::string("blobs/")}) {
    const std::string dir = rig.dir.File(folder);
    const auto names = Env::Posix()->ListDir(dir);
    FEDGE_CHECK(names.ok());
    for (const std::string& name : *names) {
      if (name.back() != '/') files[folder + name] = *Env::Posix()->ReadFile(dir + "/" + name);
    }
  }
  return files;
}

void WriteAll(const FederationRig& rig, const Files& files) {
  Env::Posix()->Remove(rig.dir.path()).IgnoreError();
  FEDGE_CHECK(Env::Posix()->CreateDirs(rig.dir.File("blobs")).ok());
  for (const auto& [name, bytes] : files) {
    FEDGE_CHECK(Env::Posix()->WriteFileAtomic(rig.dir.File(name), bytes).ok());
  }
}

// One kind of damage to one file.
void Damage(Rng& rng, std::string& bytes) {
  if (bytes.empty()) return;
  switch (rng.Below(4)) {
    case 0:
      bytes.resize(rng.Below(bytes.size()));
      break;
    case 1: {
      const size_t page = rng.Below(bytes.size()) / 4096 * 4096;
      std::fill_n(bytes.begin() + static_cast<int64_t>(page),
                  std::min<size_t>(4096, bytes.size() - page), '\0');
      break;
    }
    default:
      for (uint64_t flips = 1 + rng.Below(64); flips > 0; --flips) {
        char& byte = bytes[rng.Below(bytes.size())];
        byte = static_cast<char>(byte ^ (1 << rng.Below(8)));
      }
  }
}

std::vector<float> ValuesOf(FederationCore& core) {
  const LoraAdapter adapter = core.adapter();
  return {adapter.values().begin(), adapter.values().end()};
}

TEST(DamageTest, IsFoundAtTheStartAndNeverServed) {
  FederationRig rig;
  std::vector<std::vector<float>> published = {ValuesOf(*rig.core)};
  rig.CheckInAll(4);
  rig.PlayRound(4, 1, 0);
  published.push_back(ValuesOf(*rig.core));
  rig.Start();  // what was written so far moves from the log into the database
  for (uint64_t i = 0; i < 2; ++i) {
    rig.UploadUpdate(NodeName(i), {.round = 2, .base_version = 1, .seed = 200 + i});
  }
  const Files whole = ReadAll(rig);  // with the log: the server is still there
  ASSERT_GT(whole.at("fedge.db-wal").size(), 4096u);
  rig.core.reset();
  int refused = 0, repaired = 0, harmless = 0;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    Files files = whole;
    auto victim = files.begin();
    // The database and its log as often as all blobs.
    std::advance(victim, static_cast<int64_t>(rng.Below(files.size())));
    if (rng.Below(2) == 0) victim = files.find(rng.Below(2) == 0 ? "fedge.db" : "fedge.db-wal");
    Damage(rng, victim->second);
    WriteAll(rig, files);
    rig.events.lines.clear();
    const absl::Status status = rig.TryStart();
    if (!status.ok()) {
      ++refused;
      EXPECT_FALSE(status.message().empty());
      EXPECT_EQ(status.message().find('\n'), std::string::npos);
      continue;
    }
    EXPECT_EQ(std::count(published.begin(), published.end(), ValuesOf(*rig.core)), 1);
    const bool said =
        std::any_of(rig.events.lines.begin(), rig.events.lines.end(),
                    [](const std::string& line) { return line.rfind("damage: ", 0) == 0; });
    said ? ++repaired : ++harmless;
    rig.core.reset();
  }
  // Damage of free space, and of a log's end, is none.
  EXPECT_GT(refused, 20);
  EXPECT_GT(repaired, 40);
  RecordProperty("refused", refused);
  RecordProperty("repaired", repaired);
  RecordProperty("harmless", harmless);
}

}  // namespace
}  // namespace fedge
