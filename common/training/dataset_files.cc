// Files and folders to records.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/training/dataset.h"
#include "common/training/dataset_line.h"

namespace fedge {
namespace {

constexpr size_t kTextRecordBytes = 2000;
constexpr int kMaxFolderDepth = 32;  // a link to its own parent must end somewhere

bool IsJsonLines(absl::string_view path) {
  return absl::EndsWithIgnoreCase(path, ".jsonl") || absl::EndsWithIgnoreCase(path, ".ndjson") ||
         absl::EndsWithIgnoreCase(path, ".json");
}

// Other .json files of a folder (configurations, say) are not data.
bool IsFolderData(absl::string_view name) {
  for (const absl::string_view ending : {".jsonl", ".ndjson", ".txt", ".md"}) {
    if (absl::EndsWithIgnoreCase(name, ending)) return true;
  }
  return false;
}

// Takes the next line, without its line break, off the front of `text`.
absl::string_view TakeLine(absl::string_view& text) {
  const size_t feed = text.find('\n');
  absl::string_view line = text.substr(0, feed);
  text.remove_prefix(feed == absl::string_view::npos ? text.size() : feed + 1);
  if (absl::EndsWith(line, "\r")) line.remove_suffix(1);
  return line;
}

bool IsBlank(absl::string_view line) { return absl::StripAsciiWhitespace(line).empty(); }

std::string ContentId(const Record& record) {
  std::string content;
  for (const RecordSpan& span : record.spans) {
    absl::StrAppend(&content, span.trained ? "\x01" : "\x02", span.text);
  }
  return absl::StrCat(absl::Hex(StableHash(content), absl::kZeroPad16));
}

class RecordReader {
 public:
  RecordReader(ChatFormat format, const DatasetLimits& limits, Env& env)
      : format_(format), limits_(limits), env_(env) {}

  absl::Status ReadFolder(const std::string& folder, const std::string& inside, int depth) {
    if (depth > kMaxFolderDepth) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, ": folders are nested deeper than ", kMaxFolderDepth));
    }
    ASSIGN_OR_RETURN(const std::vector<std::string> names, env_.ListDir(folder));
    for (const std::string& name : names) {
      if (absl::StartsWith(name, ".")) continue;
      const std::string path = JoinPath(folder, name);
      const std::string relative = absl::StrCat(inside, name);
      if (absl::EndsWith(name, "/")) {
        RETURN_IF_ERROR(ReadFolder(path.substr(0, path.size() - 1), relative, depth + 1));
      } else if (IsFolderData(name)) {
        RETURN_IF_ERROR(ReadFile(path, relative, /*in_folder=*/true));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadFile(const std::string& path, const std::string& node, bool in_folder) {
    ++num_files_;
    ASSIGN_OR_RETURN(const uint64_t size, env_.FileSize(path));
    if (size > limits_.max_file_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat(path, ": ", size, " bytes exceed the limit of ", limits_.max_file_bytes,
                       " bytes a data file; split the file"));
    }
    if (size == 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> file, env_.Map(path));
    absl::string_view text = file->bytes();
    if (absl::StartsWith(text, "\xef\xbb\xbf")) text.remove_prefix(3);  // byte-order mark
    return IsJsonLines(path) ? ReadJsonLines(path, text, in_folder ? node : "")
                             : ReadText(path, text, node);
  }

  int64_t num_files() const { return num_files_; }
  std::vector<Record> TakeRecords() { return std::move(records_); }

 private:
  static absl::Status At(absl::string_view path, uint64_t line, const absl::Status& status) {
    return Annotate(status, absl::StrCat(path, ":", line));
  }

  absl::Status Add(absl::string_view path, uint64_t line, Record record) {
    if (records_.size() >= limits_.max_records) {
      return At(path, line,
                absl::ResourceExhaustedError(absl::StrCat(
                    "more than the limit of ", limits_.max_records, " records; use less data")));
    }
    if (record.id.empty()) record.id = ContentId(record);
    records_.push_back(std::move(record));
    return absl::OkStatus();
  }

  absl::Status ReadJsonLines(const std::string& path, absl::string_view text,
                             const std::string& default_node) {
    const size_t first = records_.size();
    bool names_nodes = false;
    for (uint64_t number = 1; !text.empty(); ++number) {
      const absl::string_view line = TakeLine(text);
      if (line.size() > limits_.max_line_bytes) {
        return At(path, number,
                  absl::ResourceExhaustedError(
                      absl::StrCat("the line has ", line.size(), " bytes, more than the limit ",
                                   limits_.max_line_bytes, "; split the record")));
      }
      if (IsBlank(line)) continue;
      absl::StatusOr<Record> record = ParseRecordLine(line, format_);
      if (!record.ok()) return At(path, number, record.status());
      names_nodes = names_nodes || !record->node.empty();
      RETURN_IF_ERROR(Add(path, number, *std::move(record)));
    }
    if (names_nodes) return absl::OkStatus();
    for (size_t i = first; i < records_.size(); ++i) records_[i].node = default_node;
    return absl::OkStatus();
  }

  absl::Status ReadText(const std::string& path, absl::string_view text, const std::string& node) {
    std::string record;     // paragraphs gathered so far
    std::string paragraph;  // lines gathered so far
    uint64_t number = 0;
    const auto end_paragraph = [&]() -> absl::Status {
      if (paragraph.empty()) return absl::OkStatus();
      if (!record.empty() && record.size() + 2 + paragraph.size() > kTextRecordBytes) {
        RETURN_IF_ERROR(AddText(path, number, node, record));
        record.clear();
      }
      absl::StrAppend(&record, record.empty() ? "" : "\n\n", paragraph);
      paragraph.clear();
      return absl::OkStatus();
    };
    while (!text.empty()) {
      ++number;
      const absl::string_view line = TakeLine(text);
      if (const size_t at = FindInvalidUtf8(line); at != absl::string_view::npos) {
        return At(path, number,
                  absl::InvalidArgumentError(absl::StrCat(
                      "byte ", at + 1, " (0x", absl::BytesToHexString(line.substr(at, 1)),
                      ") is not UTF-8; convert the file to UTF-8")));
      }
      if (IsBlank(line)) {
        RETURN_IF_ERROR(end_paragraph());
        continue;
      }
      if (!paragraph.empty()) paragraph.push_back('\n');
      for (absl::string_view left = line; !left.empty();) {  // in slices: a line may be the file
        absl::StrAppend(&paragraph, left.substr(0, kTextRecordBytes));
        left.remove_prefix(std::min(left.size(), kTextRecordBytes));
        while (paragraph.size() > kTextRecordBytes) {
          std::string rest = CutParagraph(paragraph);
          RETURN_IF_ERROR(end_paragraph());
          paragraph = std::move(rest);
        }
      }
    }
    RETURN_IF_ERROR(end_paragraph());
    return record.empty() ? absl::OkStatus() : AddText(path, number, node, record);
  }

  // Shortens a paragraph to a record's size, at a line break or a space where there is one, and
  // returns the rest.
  static std::string CutParagraph(std::string& paragraph) {
    size_t cut = paragraph.rfind('\n', kTextRecordBytes);
    if (cut == std::string::npos || cut == 0) cut = paragraph.rfind(' ', kTextRecordBytes);
    if (cut == std::string::npos || cut == 0) {
      cut = kTextRecordBytes;
      while (cut > 1 && (static_cast<unsigned char>(paragraph[cut]) & 0xC0) == 0x80) --cut;
    }
    const bool line_break = paragraph[cut] == '\n';
    std::string rest = paragraph.substr(cut + (line_break ? 1 : 0));
    paragraph.resize(cut);
    return rest;
  }

  absl::Status AddText(absl::string_view path, uint64_t line, const std::string& node,
                       const std::string& text) {
    Record record;
    record.node = node;
    RecordSpan span;
    span.text = text;
    span.trained = true;
    record.spans.push_back(std::move(span));
    return Add(path, line, std::move(record));
  }

  ChatFormat format_;
  DatasetLimits limits_;
  Env& env_;
  int64_t num_files_ = 0;
  std::vector<Record> records_;
};

}  // namespace

absl::StatusOr<std::vector<Record>> ReadRecords(absl::string_view path, ChatFormat format,
                                                const DatasetLimits& limits, Env& env) {
  RecordReader reader(format, limits, env);
  std::string name(path);
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  if (!env.IsDirectory(name)) {
    RETURN_IF_ERROR(reader.ReadFile(name, std::string(BaseName(name)), /*in_folder=*/false));
    return reader.TakeRecords();
  }
  RETURN_IF_ERROR(reader.ReadFolder(name, "", 0));
  if (reader.num_files() == 0) {
    return absl::NotFoundError(
        absl::StrCat(name, ": no data in this folder; put *.jsonl, *.txt or *.md files there"));
  }
  return reader.TakeRecords();
}

}  // namespace fedge
