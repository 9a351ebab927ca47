// How versions and decisions look to people and to scripts.
#ifndef FEDGE_TOOLS_FEDGE_MODEL_OUTPUT_H_
#define FEDGE_TOOLS_FEDGE_MODEL_OUTPUT_H_

#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "fedge/v1/admin.pb.h"
#include "tools/fedge/model_change.h"

namespace fedge {

void PrintModels(const v1::ModelListResponse& models, std::ostream& out);
void PrintModel(const v1::ModelInfo& model, std::ostream& out);
void PrintDiff(const v1::ModelInfo& before, const v1::ModelInfo& after,
               const std::vector<ModuleChange>& changes, std::ostream& out);
nlohmann::ordered_json DiffJson(const v1::ModelInfo& before, const v1::ModelInfo& after,
                                const std::vector<ModuleChange>& changes);
// "12  2026-11-21 17:04:05  notes  root  rollback  {...}"
std::string AuditLine(const v1::AuditRecordProto& record);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_MODEL_OUTPUT_H_
