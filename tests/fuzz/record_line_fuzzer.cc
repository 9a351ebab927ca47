// Any line of a data file is an error or a record whose spans are UTF-8.
#include <cstdint>

#include "common/base/status.h"
#include "common/training/dataset_line.h"

namespace fedge {
namespace {

void RunOne(absl::string_view line) {
  for (const ChatFormat format : {ChatFormat::kLlama2, ChatFormat::kChatMl, ChatFormat::kPlain}) {
    const auto record = ParseRecordLine(line, format);
    if (!record.ok()) {
      FEDGE_CHECK(record.status().code() == absl::StatusCode::kInvalidArgument);
      FEDGE_CHECK(!record.status().message().empty());
      continue;
    }
    for (const RecordSpan& span : record->spans) {
      FEDGE_CHECK(FindInvalidUtf8(span.text) == absl::string_view::npos);
    }
  }
}

}  // namespace
}  // namespace fedge

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fedge::RunOne(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
