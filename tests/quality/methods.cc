#include "tests/quality/methods.h"

#include <algorithm>

namespace fedge {

const std::vector<StudyMethod>& StudyMethods() {
  static const auto* const methods = new std::vector<StudyMethod>{
      {kReferenceMethod, "{codec: {support: dense, value_bits: 16}}"},
      {"topk-3-2", "{codec: {density: 0.03, value_bits: 2}}"},
  };
  return *methods;
}

StudyMethod FindMethod(const std::string& name) {
  for (const StudyMethod& method : StudyMethods()) {
    if (method.name == name) return method;
  }
  return {name, "{}"};
}

}  // namespace fedge
