#include "server/node_quota.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr absl::string_view kRetryAfterUrl = "fedge/retry-after-ms";
constexpr absl::Duration kSweepInterval = absl::Minutes(1);
// Streams end without a fixed rate: a guess at when one may have.
constexpr absl::Duration kStreamRetry = absl::Seconds(5);

absl::Status Refusal(absl::string_view node, absl::string_view what, absl::Duration wait) {
  wait = absl::Ceil(wait, absl::Seconds(1));
  absl::Status status = absl::ResourceExhaustedError(absl::StrCat(
      "quota: node '", node, "' ", what, "; try again in ", absl::FormatDuration(wait)));
  status.SetPayload(kRetryAfterUrl, absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(wait))));
  return status;
}

double PerSecond(double amount, absl::Duration period) {
  return amount / absl::ToDoubleSeconds(period);
}

}  // namespace

void NodeQuota::Refill(Usage& usage, absl::Duration now) const {
  const double seconds = std::max(0.0, absl::ToDoubleSeconds(now - usage.refilled));
  usage.refilled = now;
  const auto requests = static_cast<double>(limits_.requests_per_minute);
  const auto bytes = static_cast<double>(limits_.upload_bytes_per_day);
  usage.requests = std::max(0.0, usage.requests - seconds * PerSecond(requests, absl::Minutes(1)));
  usage.bytes = std::max(0.0, usage.bytes - seconds * PerSecond(bytes, absl::Hours(24)));
}

void NodeQuota::ForgetIdle(absl::Duration now) {
  next_sweep_ = now + kSweepInterval;
  for (auto node = nodes_.begin(); node != nodes_.end();) {
    Refill(node->second, now);
    const Usage& usage = node->second;
    const bool idle = usage.requests == 0 && usage.bytes == 0 && usage.streams == 0;
    node = idle ? nodes_.erase(node) : std::next(node);
  }
}

absl::Status NodeQuota::Find(absl::string_view node, absl::Duration now, Usage** usage) {
  auto found = nodes_.find(node);
  if (found == nodes_.end()) {
    if (nodes_.size() >= limits_.max_nodes && now >= next_sweep_) ForgetIdle(now);
    if (nodes_.size() >= limits_.max_nodes) {
      return Refusal(node,
                     absl::StrCat("is one more than the ", limits_.max_nodes,
                                  " that the server follows at a time"),
                     next_sweep_ - now);
    }
    found = nodes_.emplace(std::string(node), Usage()).first;
    found->second.refilled = now;
  }
  Refill(found->second, now);
  *usage = &found->second;
  return absl::OkStatus();
}

absl::Status NodeQuota::TakeRequest(absl::string_view node, absl::Duration now) {
  if (limits_.requests_per_minute == 0) return absl::OkStatus();
  Usage* usage = nullptr;
  RETURN_IF_ERROR(Find(node, now, &usage));
  const auto limit = static_cast<double>(limits_.requests_per_minute);
  const double over = usage->requests + 1 - limit;
  if (over > 0) {
    return Refusal(node,
                   absl::StrCat("sent its ", limits_.requests_per_minute, " requests of a minute"),
                   absl::Seconds(over / PerSecond(limit, absl::Minutes(1))));
  }
  usage->requests += 1;
  return absl::OkStatus();
}

absl::Status NodeQuota::TakeBytes(absl::string_view node, uint64_t bytes, absl::Duration now) {
  if (limits_.upload_bytes_per_day == 0) return absl::OkStatus();
  Usage* usage = nullptr;
  RETURN_IF_ERROR(Find(node, now, &usage));
  const auto limit = static_cast<double>(limits_.upload_bytes_per_day);
  // More than a day's share at once is paid back over the following days.
  const double over = usage->bytes + std::min(static_cast<double>(bytes), limit) - limit;
  if (over > 0) {
    return Refusal(node,
                   absl::StrCat("would pass its ", limits_.upload_bytes_per_day,
                                " bytes of uploads a day with ", bytes, " more"),
                   absl::Seconds(over / PerSecond(limit, absl::Hours(24))));
  }
  usage->bytes += static_cast<double>(bytes);
  return absl::OkStatus();
}

absl::Status NodeQuota::OpenStream(absl::string_view node, absl::Duration now) {
  if (limits_.open_streams == 0) return absl::OkStatus();
  Usage* usage = nullptr;
  RETURN_IF_ERROR(Find(node, now, &usage));
  if (usage->streams >= limits_.open_streams) {
    return Refusal(node, absl::StrCat("has ", usage->streams, " open uploads, its limit"),
                   kStreamRetry);
  }
  ++usage->streams;
  return absl::OkStatus();
}

void NodeQuota::CloseStream(absl::string_view node) {
  const auto found = nodes_.find(node);
  if (found != nodes_.end() && found->second.streams > 0) --found->second.streams;
}

absl::Duration RetryAfter(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfterUrl);
  int64_t milliseconds = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &milliseconds)) {
    return absl::ZeroDuration();
  }
  return absl::Milliseconds(milliseconds);
}

}  // namespace fedge
