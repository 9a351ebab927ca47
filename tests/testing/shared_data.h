// Optional conformance data: real models, texts and reference values that are not part of the
// product. Looked for in $FEDGE_SHARED_DATA, else in the folder shared/data beside the checkout.
#ifndef FEDGE_TESTS_TESTING_SHARED_DATA_H_
#define FEDGE_TESTS_TESTING_SHARED_DATA_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace fedge::testing {

// The path of `name` (e.g. "models/stories260K-f32.gguf"), or nothing when it is absent. A test
// that needs it calls FEDGE_SHARED_DATA_OR_SKIP.
std::optional<std::string> SharedData(absl::string_view name);

}  // namespace fedge::testing

#define FEDGE_SHARED_DATA_OR_SKIP(variable, name)                          \
  const auto variable##_found = ::fedge::testing::SharedData(name);        \
  if (!variable##_found) GTEST_SKIP() << "no conformance file " << (name); \
  const std::string variable = *variable##_found

#endif  // FEDGE_TESTS_TESTING_SHARED_DATA_H_
