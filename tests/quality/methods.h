// The ways of compressing that the study compares.
#ifndef FEDGE_TESTS_QUALITY_METHODS_H_
#define FEDGE_TESTS_QUALITY_METHODS_H_

#include <string>
#include <vector>

#include "tests/quality/study.h"

namespace fedge {

// Uncompressed FedAvg of both factors; its bytes are counted as fp32 both ways.
inline constexpr const char* kReferenceMethod = "dense-fp32";

const std::vector<StudyMethod>& StudyMethods();
// A name that is not known is a method without changes (for one's own --yaml).
StudyMethod FindMethod(const std::string& name);

}  // namespace fedge

#endif  // FEDGE_TESTS_QUALITY_METHODS_H_
