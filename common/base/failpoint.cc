#include "common/base/failpoint.h"

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/status.h"

// Made by the linker; absent in a program without places.
extern "C" {
[[gnu::weak]] extern fedge::internal::Failpoint* __start_fedge_failpoints[];
[[gnu::weak]] extern fedge::internal::Failpoint* __stop_fedge_failpoints[];
}

namespace fedge {
namespace {

enum class Kind { kCount, kCrash, kCrashAfter, kError, kErrorAfter, kDelay };

struct Plan {
  Kind kind = Kind::kCount;
  absl::StatusCode code = absl::StatusCode::kInternal;
  absl::Duration delay;
  uint64_t hit = 1;
  uint64_t hits = 0;
};

struct Registry {
  absl::Mutex mutex;
  std::map<std::string, Plan, std::less<>> plans ABSL_GUARDED_BY(mutex);
};

Registry& TheRegistry() {
  static Registry* const registry = new Registry;
  return *registry;
}

template <typename Visit>
void ForEachPlace(const Visit& visit) {
  for (internal::Failpoint** place = __start_fedge_failpoints; place != __stop_fedge_failpoints;
       ++place) {
    visit(**place);
  }
}

bool IsPlace(absl::string_view name) {
  bool found = false;
  ForEachPlace([&](const internal::Failpoint& place) { found = found || place.name() == name; });
  return found;
}

std::optional<absl::StatusCode> CodeNamed(absl::string_view name) {
  static const std::pair<absl::string_view, absl::StatusCode> kCodes[] = {
      {"", absl::StatusCode::kInternal},
      {"internal", absl::StatusCode::kInternal},
      {"resource_exhausted", absl::StatusCode::kResourceExhausted},
      {"permission_denied", absl::StatusCode::kPermissionDenied},
      {"unavailable", absl::StatusCode::kUnavailable},
      {"data_loss", absl::StatusCode::kDataLoss}};
  for (const auto& [text, code] : kCodes) {
    if (text == name) return code;
  }
  return std::nullopt;
}

// "error(data_loss)" -> "error", "data_loss".
std::pair<absl::string_view, absl::string_view> SplitArgument(absl::string_view action) {
  const size_t open = action.find('(');
  if (open == absl::string_view::npos || !absl::ConsumeSuffix(&action, ")")) return {action, ""};
  return {action.substr(0, open), action.substr(open + 1)};
}

bool ParseAction(absl::string_view action, Plan& plan) {
  const auto [verb, argument] = SplitArgument(action);
  if (verb == "error" || verb == "error-after") {
    const std::optional<absl::StatusCode> code = CodeNamed(argument);
    plan.kind = verb == "error" ? Kind::kError : Kind::kErrorAfter;
    plan.code = code.value_or(plan.code);
    return code.has_value();
  }
  if (verb == "delay") {
    uint32_t ms = 0;
    plan.kind = Kind::kDelay;
    if (!absl::SimpleAtoi(argument, &ms)) return false;
    plan.delay = absl::Milliseconds(ms);
    return true;
  }
  if (!argument.empty()) return false;
  if (verb == "crash") {
    plan.kind = Kind::kCrash;
  } else if (verb == "crash-after") {
    plan.kind = Kind::kCrashAfter;
  } else {
    plan.kind = Kind::kCount;
    return verb == "count";
  }
  return true;
}

absl::Status ParseOne(absl::string_view text, std::map<std::string, Plan, std::less<>>& plans) {
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("failpoint '", text, "': ", what));
  };
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits('=', 1));
  const std::pair<absl::string_view, absl::string_view> action =
      absl::StrSplit(parts.second, absl::MaxSplits(':', 1));
  Plan plan;
  if (!ParseAction(action.first, plan)) {
    return wrong(
        "the action is none of crash, crash-after, error[(code)], error-after[(code)], delay(ms), "
        "count");
  }
  if (!action.second.empty() && (!absl::SimpleAtoi(action.second, &plan.hit) || plan.hit == 0)) {
    return wrong("the hit is not a number from 1 on");
  }
  if (parts.first == "*") {
    ForEachPlace([&](const internal::Failpoint& place) { plans[place.name()] = plan; });
  } else if (IsPlace(parts.first)) {
    plans[std::string(parts.first)] = plan;
  } else {
    return wrong("this program has no such place");
  }
  return absl::OkStatus();
}

[[noreturn]] void Die() {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

}  // namespace

absl::Status ArmFailpoints(absl::string_view spec) {
  std::map<std::string, Plan, std::less<>> plans;
  for (const absl::string_view text : absl::StrSplit(spec, ';', absl::SkipWhitespace())) {
    RETURN_IF_ERROR(ParseOne(absl::StripAsciiWhitespace(text), plans));
  }
  Registry& registry = TheRegistry();
  absl::MutexLock lock(&registry.mutex);
  registry.plans = std::move(plans);
  ForEachPlace([&](internal::Failpoint& place) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    place.set_armed(registry.plans.count(place.name()) > 0);
  });
  return absl::OkStatus();
}

absl::Status ArmFailpointsFromEnvironment() {
  const char* const spec = std::getenv("FEDGE_FAILPOINTS");
  return spec == nullptr ? absl::OkStatus() : ArmFailpoints(spec);
}

std::vector<FailpointHits> ListFailpoints() {
  Registry& registry = TheRegistry();
  absl::MutexLock lock(&registry.mutex);
  std::map<std::string, uint64_t> names;
  ForEachPlace([&](const internal::Failpoint& place) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    const auto plan = registry.plans.find(place.name());
    names[place.name()] = plan == registry.plans.end() ? 0 : plan->second.hits;
  });
  std::vector<FailpointHits> list;
  for (const auto& [name, hits] : names) list.push_back({name, hits});
  return list;
}

absl::Status SaveFailpointHits() {
  const char* const path = std::getenv("FEDGE_FAILPOINT_HITS");
  if (path == nullptr) return absl::OkStatus();
  std::ofstream file(path);
  for (const FailpointHits& place : ListFailpoints())
    file << place.name << " " << place.hits << "\n";
  file.close();
  return file ? absl::OkStatus() : absl::InternalError(absl::StrCat(path, ": cannot be written"));
}

namespace internal {

absl::Status Failpoint::RunArmed(absl::FunctionRef<absl::Status()> operation) {
  Plan plan;
  {
    Registry& registry = TheRegistry();
    absl::MutexLock lock(&registry.mutex);
    const auto found = registry.plans.find(name_);
    if (found != registry.plans.end() && ++found->second.hits == found->second.hit) {
      plan = found->second;
    }
  }
  if (plan.kind != Kind::kCount) std::fprintf(stderr, "failpoint %s: reached\n", name_);
  const absl::Status injected(plan.code, absl::StrCat("injected failure at ", name_));
  switch (plan.kind) {
    case Kind::kCount:
      break;
    case Kind::kCrash:
      Die();
    case Kind::kCrashAfter:
      operation().IgnoreError();
      Die();
    case Kind::kError:
      return injected;
    case Kind::kErrorAfter:
      operation().IgnoreError();
      return injected;
    case Kind::kDelay:
      absl::SleepFor(plan.delay);
      break;
  }
  return operation();
}

}  // namespace internal
}  // namespace fedge
