#include "tools/fedge/qr_code.h"

#include <qrencode.h>

#include <memory>

namespace fedge {
namespace {

constexpr int kQuietModules = 4;
constexpr absl::string_view kDarkOnLight = "\x1b[30;107m";  // black on white
constexpr absl::string_view kReset = "\x1b[0m";

struct FreeCode {
  void operator()(QRcode* code) const { QRcode_free(code); }
};

}  // namespace

std::string QrCode(absl::string_view text) {
  // Its parser finds the alphanumeric mode by itself.
  const std::unique_ptr<QRcode, FreeCode> code(
      QRcode_encodeString(std::string(text).c_str(), 0, QR_ECLEVEL_L, QR_MODE_8, 1));
  if (code == nullptr) return "";
  const auto is_dark = [&](int x, int y) {
    if (x < 0 || y < 0 || x >= code->width || y >= code->width) return false;
    return (code->data[y * code->width + x] & 1) != 0;
  };
  std::string lines;
  for (int y = -kQuietModules; y < code->width + kQuietModules; y += 2) {
    lines.append(kDarkOnLight.data(), kDarkOnLight.size());
    for (int x = -kQuietModules; x < code->width + kQuietModules; ++x) {
      const bool upper = is_dark(x, y), lower = is_dark(x, y + 1);
      lines += upper ? (lower ? "\u2588" : "\u2580") : (lower ? "\u2584" : " ");
    }
    lines.append(kReset.data(), kReset.size());
    lines += "\n";
  }
  return lines;
}

}  // namespace fedge
