// A base model from the bytes of a GGUF.
#ifndef FEDGE_TESTS_TESTING_LOAD_MODEL_H_
#define FEDGE_TESTS_TESTING_LOAD_MODEL_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/formats/gguf.h"
#include "common/model/base_model.h"

namespace fedge::testing {

// Parses bytes that must outlive the model; tests keep them on their stack.
inline absl::StatusOr<std::shared_ptr<const BaseModel>> LoadBytes(const std::string& bytes) {
  auto file = GgufFile::Parse(bytes, "test.gguf");
  if (!file.ok()) return file.status();
  return BaseModel::FromGguf(*file);
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_TESTING_LOAD_MODEL_H_
