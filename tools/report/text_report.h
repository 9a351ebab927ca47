// The closing table of a run, for a terminal.
#ifndef FEDGE_TOOLS_REPORT_TEXT_REPORT_H_
#define FEDGE_TOOLS_REPORT_TEXT_REPORT_H_

#include <string>

#include "tools/report/run_report.h"

namespace fedge {

// Some of the rounds (at most a dozen, the first and the last among them) and what came of it all.
std::string TextReport(const RunReport& report);

}  // namespace fedge

#endif  // FEDGE_TOOLS_REPORT_TEXT_REPORT_H_
