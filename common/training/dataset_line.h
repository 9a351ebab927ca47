// One line of a JSONL data file. Behind dataset.h.
#ifndef FEDGE_COMMON_TRAINING_DATASET_LINE_H_
#define FEDGE_COMMON_TRAINING_DATASET_LINE_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/model/chat_template.h"
#include "common/training/dataset.h"

namespace fedge {

// The record of one JSON object; node and id stay empty where the line names none. The message of
// an InvalidArgument is the reason alone: the caller knows file and line.
absl::StatusOr<Record> ParseRecordLine(absl::string_view line, ChatFormat format);

// The offset of the first byte that is not UTF-8, or npos.
size_t FindInvalidUtf8(absl::string_view text);

}  // namespace fedge

#endif  // FEDGE_COMMON_TRAINING_DATASET_LINE_H_
