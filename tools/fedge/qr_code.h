// Text as a QR code that a terminal shows and a telephone reads.
#ifndef FEDGE_TOOLS_FEDGE_QR_CODE_H_
#define FEDGE_TOOLS_FEDGE_QR_CODE_H_

#include <string>

#include "absl/strings/string_view.h"

namespace fedge {

// Lines of half blocks (two rows of modules each), with the quiet zone of four modules around, dark
// on light whatever the terminal's colours. Empty: `text` is too long for a QR code.
std::string QrCode(absl::string_view text);

}  // namespace fedge

#endif  // FEDGE_TOOLS_FEDGE_QR_CODE_H_
