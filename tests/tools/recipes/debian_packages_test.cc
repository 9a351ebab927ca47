#include "tools/recipes/debian_packages.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fedge {
namespace {

std::string PackageStanza(absl::string_view name, absl::string_view maintainer,
                          absl::string_view section, absl::string_view md5) {
  return absl::StrCat("Package: ", name, "\nVersion: 1\nMaintainer: ", maintainer,
                      "\nSection: ", section, "\nDescription: short\nDescription-md5: ", md5,
                      "\n\n");
}

std::string TranslationStanza(absl::string_view name, absl::string_view md5,
                              absl::string_view description) {
  return absl::StrCat("Package: ", name, "\nDescription-md5: ", md5,
                      "\nDescription-en: ", description, "\n\n");
}

// Three packages of Ada, two of Bob, each with a description of its own.
ArchiveLists SmallArchive() {
  ArchiveLists lists;
  lists.packages = {PackageStanza("a-one", "Ada <ada@example.org>", "libs", "m1") +
                    PackageStanza("b-two", "\"Bob\" <bob@example.org>", "contrib/games", "m2") +
                    PackageStanza("a-three", "Ada <other@example.org>", "libs", "m3") +
                    PackageStanza("b-four", "Bob <bob@example.org>", "utils", "m4") +
                    PackageStanza("a-five", "Ada <ada@example.org>", "utils", "m5")};
  lists.translations = {TranslationStanza("a-one", "m1", "first\n Text one.") +
                        TranslationStanza("b-two", "m2", "second\n Text two.") +
                        TranslationStanza("a-three", "m3", "third\n Text three.") +
                        TranslationStanza("b-four", "m4", "fourth\n Text four.") +
                        TranslationStanza("a-five", "m5", "fifth\n Text five.")};
  return lists;
}

DebianPackagesOptions SmallOptions() {
  DebianPackagesOptions options;
  options.min_packages_per_node = 2;
  return options;
}

std::string Build(const ArchiveLists& lists, const DebianPackagesOptions& options) {
  DebianPackagesSummary summary;
  return BuildDebianPackages(lists, options, &summary).value();
}

TEST(Deb822ReaderTest, ReadsFieldsAndContinuationLines) {
  Deb822Reader reader("\n\nA: 1\nB: two\n more\n .\n\tlast\nnonsense\n\nA:3\n");
  Deb822Stanza stanza;
  ASSERT_TRUE(reader.Next(&stanza));
  EXPECT_EQ(stanza.Find("A"), "1");
  EXPECT_EQ(stanza.Find("B"), "two\n more\n .\n\tlast");
  EXPECT_EQ(stanza.Find("C"), "");
  ASSERT_TRUE(reader.Next(&stanza));
  EXPECT_EQ(stanza.Find("A"), "3");
  EXPECT_FALSE(reader.Next(&stanza));
}

TEST(Deb822ReaderTest, EndsQuietlyWithoutAFinalLineFeed) {
  Deb822Reader reader("A: 1\nB: two\n more");
  Deb822Stanza stanza;
  ASSERT_TRUE(reader.Next(&stanza));
  EXPECT_EQ(stanza.Find("B"), "two\n more");
  EXPECT_FALSE(reader.Next(&stanza));
}

TEST(DebianPackagesTest, UnfoldsParagraphsAndKeepsLists) {
  EXPECT_EQ(
      UnfoldDescription(" One line\n and its end.\n .\n Features:\n  * verbatim\n"
                        "    deeper\n - item that\n goes on\n 2) next\n ."),
      "One line and its end.\n\nFeatures:\n * verbatim\n   deeper\n- item that goes on\n2) next");
  EXPECT_EQ(UnfoldDescription(""), "");
}

TEST(DebianPackagesTest, WritesSortedTextAndLabelRecords) {
  EXPECT_EQ(
      Build(SmallArchive(), SmallOptions()),
      R"({"node":"Ada","id":"a-five","text":"Package: a-five\nSummary: fifth\nSection: utils\nText five.\n"})"
      "\n"
      R"({"node":"Ada","id":"a-five","prompt":"Package: a-five\nSummary: fifth\nSection:","completion":" utils"})"
      "\n"
      R"({"node":"Ada","id":"a-one","text":"Package: a-one\nSummary: first\nSection: libs\nText one.\n"})"
      "\n"
      R"({"node":"Ada","id":"a-one","prompt":"Package: a-one\nSummary: first\nSection:","completion":" libs"})"
      "\n"
      R"({"node":"Ada","id":"a-three","text":"Package: a-three\nSummary: third\nSection: libs\nText three.\n"})"
      "\n"
      R"({"node":"Ada","id":"a-three","prompt":"Package: a-three\nSummary: third\nSection:","completion":" libs"})"
      "\n"
      R"({"node":"Bob","id":"b-four","text":"Package: b-four\nSummary: fourth\nSection: utils\nText four.\n"})"
      "\n"
      R"({"node":"Bob","id":"b-four","prompt":"Package: b-four\nSummary: fourth\nSection:","completion":" utils"})"
      "\n"
      R"({"node":"Bob","id":"b-two","text":"Package: b-two\nSummary: second\nSection: games\nText two.\n"})"
      "\n"
      R"({"node":"Bob","id":"b-two","prompt":"Package: b-two\nSummary: second\nSection:","completion":" games"})"
      "\n");
}

TEST(DebianPackagesTest, LabelsOnlyTheMostFrequentSections) {
  DebianPackagesOptions options = SmallOptions();
  options.labelled_sections = 2;  // libs and utils, two packages each; games has one
  DebianPackagesSummary summary;
  const std::string records = BuildDebianPackages(SmallArchive(), options, &summary).value();
  EXPECT_THAT(records, testing::Not(testing::HasSubstr("\" games\"")));
  EXPECT_EQ(summary.unique_texts, 5);
  EXPECT_EQ(summary.nodes, 2);
  EXPECT_EQ(summary.texts, 5);
  EXPECT_EQ(summary.labelled, 4);
}

TEST(DebianPackagesTest, KeepsOnePackageOfEachDescriptionAndNoPlaceholders) {
  ArchiveLists lists = SmallArchive();
  lists.packages.push_back(PackageStanza("a-zero", "Ada <a@x>", "libs", "m1") +
                           PackageStanza("a-old", "Ada <a@x>", "oldlibs", "m6") +
                           PackageStanza("a-dbg", "Ada <a@x>", "libs", "m7") +
                           PackageStanza("a-move", "Ada <a@x>", "libs", "m8") +
                           PackageStanza("a-one", "Ada <a@x>", "libs", "m9") +
                           PackageStanza("a-lost", "Ada <a@x>", "libs", "missing"));
  lists.translations.push_back(TranslationStanza("a-zero", "m1", "first\n Text one.") +
                               TranslationStanza("a-old", "m6", "old\n Text.") +
                               TranslationStanza("a-dbg", "m7", "symbols\n Text.") +
                               TranslationStanza("a-move", "m8", "Transitional package\n Text.") +
                               TranslationStanza("a-one", "m9", "newer version\n Text."));
  EXPECT_EQ(Build(lists, SmallOptions()), Build(SmallArchive(), SmallOptions()));
}

TEST(DebianPackagesTest, DoesNotDependOnTheOrderOfTheLists) {
  ArchiveLists lists = SmallArchive();
  lists.packages = {PackageStanza("a-five", "Ada <ada@example.org>", "utils", "m5"),
                    PackageStanza("b-four", "Bob <bob@example.org>", "utils", "m4") +
                        PackageStanza("a-three", "Ada <other@example.org>", "libs", "m3"),
                    PackageStanza("b-two", "\"Bob\" <bob@example.org>", "contrib/games", "m2") +
                        PackageStanza("a-one", "Ada <ada@example.org>", "libs", "m1")};
  EXPECT_EQ(Build(lists, SmallOptions()), Build(SmallArchive(), SmallOptions()));
}

TEST(DebianPackagesTest, LimitsPackagesPerNodeAndTextBytes) {
  DebianPackagesOptions options = SmallOptions();
  options.labelled_sections = 0;
  options.max_packages_per_node = 2;  // of Ada's three: the first and the second
  options.max_text_bytes = 35;
  EXPECT_EQ(Build(SmallArchive(), options),
            R"({"node":"Ada","id":"a-five","text":"Package: a-five\nSummary: fifth\n"})"
            "\n"
            R"({"node":"Ada","id":"a-one","text":"Package: a-one\nSummary: first\nText\n"})"
            "\n"
            R"({"node":"Bob","id":"b-four","text":"Package: b-four\nSummary: fourth\n"})"
            "\n"
            R"({"node":"Bob","id":"b-two","text":"Package: b-two\nSummary: second\n"})"
            "\n");
}

TEST(DebianPackagesTest, LeavesSmallMaintainersOut) {
  DebianPackagesOptions options = SmallOptions();
  options.min_packages_per_node = 3;
  DebianPackagesSummary summary;
  const auto records = BuildDebianPackages(SmallArchive(), options, &summary);
  EXPECT_EQ(records.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(
      records.status().message(),
      "the package lists hold 5 described packages and 1 maintainers with at least 3 of them; "
      "two are needed");
}

}  // namespace
}  // namespace fedge
