#include "server/admin_context.h"

#include <algorithm>

#include "server/audit_log.h"

namespace fedge {
namespace {

constexpr size_t kMaxActorBytes = 64;

}  // namespace

std::string ActorOf(const AdminContext& context, absl::string_view own_word) {
  if (!context.caller.empty()) return context.caller;
  std::string actor(own_word.substr(0, kMaxActorBytes));
  const auto is_bad = [](char c) { return static_cast<unsigned char>(c) - 0x20u >= 0x5Fu; };
  std::replace_if(actor.begin(), actor.end(), is_bad, '?');
  return actor.empty() ? std::string(kAnOperator) : actor;
}

}  // namespace fedge
