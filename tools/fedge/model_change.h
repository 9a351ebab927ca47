// How far one version of an adapter is from another, module by module.
#ifndef FEDGE_TOOLS_FEDGE_MODEL_CHANGE_H_
#define FEDGE_TOOLS_FEDGE_MODEL_CHANGE_H_

#include <string>
#include <vector>

#include "common/adapter/lora_adapter.h"

namespace fedge {

// Frobenius norms. The product is what counts: scale * B A, added to the base's weights.
struct ModuleChange {
  std::string tensor;
  double a = 0, b = 0;  // of the factors' changes
  double product = 0;   // of the product's change
  double before = 0;    // of the product before
};

// Both of one shape (CHECKed). O(rank^2 (in + out)) a module.
std::vector<ModuleChange> CompareAdapters(const LoraAdapter& before, const LoraAdapter& after);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_MODEL_CHANGE_H_
