// report.html: what a run did, for people. One file without scripts or external resources; the
// numbers are in it as JSON too (element "run-data").
#ifndef FEDGE_TOOLS_REPORT_HTML_REPORT_H_
#define FEDGE_TOOLS_REPORT_HTML_REPORT_H_

#include <string>

#include "tools/report/run_report.h"

namespace fedge {

std::string HtmlReport(const RunReport& report);

}  // namespace fedge

#endif  // FEDGE_TOOLS_REPORT_HTML_REPORT_H_
