// How runs, nodes and events of a server look to people.
#ifndef FEDGE_TOOLS_FEDGE_ADMIN_OUTPUT_H_
#define FEDGE_TOOLS_FEDGE_ADMIN_OUTPUT_H_

#include <ostream>
#include <string>

#include "fedge/v1/admin.pb.h"

namespace fedge {

void PrintRuns(const v1::RunListResponse& runs, std::ostream& out);
void PrintRun(const v1::RunShowResponse& run, std::ostream& out);
// "run 'b' running, version 3 of 10, round 4: 2 of 3 accepted, 1 pending"
std::string RunLine(const v1::RunInfo& run);
// "version 3: round 3, 3 of 3 accepted, train loss 2.9101, holdout loss 3.0012"
std::string VersionLine(const v1::VersionInfo& version);

void PrintNodes(const v1::NodeListResponse& nodes, std::ostream& out);
void PrintNode(const v1::NodeShowResponse& node, std::ostream& out);

// "2026-11-21 17:04:05  warning  b  round 4: node 'n7' rejected: ..."
std::string EventLine(const v1::Event& event);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_ADMIN_OUTPUT_H_
