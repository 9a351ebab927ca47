// How the commands that write models show their progress and what they wrote.
#ifndef FEDGE_TOOLS_FEDGE_PREPARE_OUTPUT_H_
#define FEDGE_TOOLS_FEDGE_PREPARE_OUTPUT_H_

#include <map>

#include "common/tensor/dtype.h"
#include "tools/fedge/command_context.h"
#include "tools/prepare/quantize_model.h"
#include "tools/report/progress.h"

namespace fedge {

// Shows each tensor on `line`; stops when the user asked for it.
PrepareEvents ShowTensors(ProgressLine& line, const CommandContext& context);

// {"Q4_K": {"tensors": ..., "bytes": ..., "bits": ..., "rmse": ..., "relative_rmse": ...}, ...}
nlohmann::ordered_json TypesJson(const std::map<DType, TypeTotals>& types);
// The same as a table.
void PrintTypes(const std::map<DType, TypeTotals>& types, const CommandContext& context);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_PREPARE_OUTPUT_H_
