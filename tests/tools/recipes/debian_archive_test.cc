#include "tools/recipes/debian_archive.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(ChooseReleaseTest, TakesTheMainComponentOfTheStableRelease) {
  const ArchiveFiles files = ChooseRelease(
      "Packages|Debian|stable|bookworm|main|amd64|/l/main_Packages\n"
      "Translations|Debian|stable|bookworm|main|$(ARCHITECTURE)|/l/main_en\n"
      "Packages|Debian|stable|bookworm|contrib|amd64|/l/contrib_Packages\n"
      "Packages|Debian|stable|bookworm|non-free|amd64|/l/non-free_Packages\n"
      "Packages|Debian|stable|bookworm|main|i386|/l/i386_Packages\n"
      "Packages|Debian|stable|bookworm|main|all|/l/all_Packages\n"
      "Packages|Debian|stable-security|bookworm-security|main|amd64|/l/sec_Packages\n"
      "Translations|Debian|stable-security|bookworm-security|main|x|/l/sec_en\n"
      "Contents-deb|Debian|stable|bookworm|main|amd64|/l/contents\n"
      "a broken line\n");
  EXPECT_THAT(files.packages, ElementsAre("/l/main_Packages", "/l/all_Packages"));
  EXPECT_THAT(files.translations, ElementsAre("/l/main_en"));
}

TEST(ChooseReleaseTest, PrefersDebianToOtherArchives) {
  const ArchiveFiles files = ChooseRelease(
      "Packages|Vendor|stable|stable|main|amd64|/l/v1\n"
      "Packages|Vendor|stable|stable|extra|amd64|/l/v2\n"
      "Translations|Vendor|stable|stable|main|x|/l/v_en\n"
      "Packages|Debian|stable|bookworm|main|amd64|/l/d\n"
      "Translations|Debian|stable|bookworm|main|x|/l/d_en\n");
  EXPECT_THAT(files.packages, ElementsAre("/l/d"));
  EXPECT_THAT(files.translations, ElementsAre("/l/d_en"));
}

TEST(ChooseReleaseTest, IsEmptyWithoutEnglishDescriptions) {
  EXPECT_THAT(ChooseRelease("Packages|Debian|stable|bookworm|main|amd64|/l/d\n").packages,
              IsEmpty());
  EXPECT_THAT(ChooseRelease("").packages, IsEmpty());
}

}  // namespace
}  // namespace fedge
