#include "client/doctor.h"

#include <netdb.h>

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/model_file.h"
#include "client/state_lock.h"
#include "client/tls_probe.h"
#include "common/base/digest.h"
#include "common/base/status.h"
#include "common/model/chat_template.h"
#include "common/training/dataset.h"
#include "common/training/memory_plan.h"

namespace fedge {
namespace {

constexpr absl::Duration kMaxClockError = absl::Minutes(5);
constexpr absl::Duration kTlsTimeout = absl::Seconds(10);
constexpr int64_t kWorkBytes = 64'000'000;  // of training beside the model's file, at the least

class Doctor {
 public:
  Doctor(const ClientSettings& settings, const DoctorParts& parts)
      : settings_(settings), parts_(parts) {}

  std::vector<Finding> Run() {
    State();
    const DeviceConditions now = parts_.probe->Measure();
    Disk(now);
    AskServer();
    OpenModel();
    Memory();
    ClockError();
    Dns();
    Tls();
    Server();
    Model();
    Data();
    Policy(now);
    return std::move(findings_);
  }

 private:
  void Good(Check check, std::string name, std::string detail) {
    findings_.push_back({check, std::move(name), true, std::move(detail), ""});
  }
  void Bad(Check check, std::string name, absl::string_view detail, std::string remedy) {
    findings_.push_back({check, std::move(name), false, std::string(detail), std::move(remedy)});
  }

  void State() {
    const std::string probe = JoinPath(settings_.state_dir, ".fedge-doctor");
    absl::Status status = parts_.env->CreateDirs(settings_.state_dir);
    if (status.ok()) status = parts_.env->WriteFileAtomic(probe, "");
    if (status.ok()) status = parts_.env->Remove(probe);
    if (!status.ok()) {
      return Bad(Check::kState, "state", status.message(),
                 "give --state-dir a folder that this user may write");
    }
    const int64_t holder = StateLock::Holder(settings_.state_dir);
    Good(Check::kState, "state",
         absl::StrCat(settings_.state_dir,
                      holder == 0 ? ": no daemon runs" : absl::StrCat(": process ", holder)));
  }

  void Disk(const DeviceConditions& now) {
    const int64_t free = now.free_disk_bytes.value_or(0);
    const std::string detail = absl::StrCat(FormatMegabytes(free), " free");
    if (free >= settings_.policy.min_free_disk_bytes) return Good(Check::kDisk, "disk", detail);
    Bad(Check::kDisk, "disk", detail,
        absl::StrCat("make room: ", FormatMegabytes(settings_.policy.min_free_disk_bytes),
                     " are to stay free (policy.min_free_disk)"));
  }

  void AskServer() {
    v1::CheckInRequest request;
    request.set_node_id(settings_.node_id);
    answer_ = parts_.link->CheckIn(request);
    asked_at_ = parts_.clock->Now();
  }

  void OpenModel() {
    if (!settings_.model.empty()) {
      model_ = OpenModelFile(settings_.model, *parts_.env);
      return;
    }
    const std::string folder = JoinPath(settings_.state_dir, "models");
    for (const std::string& name :
         parts_.env->ListDir(folder).value_or(std::vector<std::string>())) {
      if (name.size() != 64 + 5) continue;
      const std::string path = JoinPath(folder, name);
      // Not OpenModelFile: its advice is for an owner's own file.
      absl::StatusOr<std::shared_ptr<const BaseModel>> base = BaseModel::Load(path, *parts_.env);
      if (base.ok()) {
        model_ = ModelFile{path, *std::move(base)};
      } else {
        model_ = base.status();
      }
    }
  }

  void Memory() {
    const int64_t limit = settings_.memory_limit_bytes;
    const std::string detail = absl::StrCat(FormatMegabytes(limit), " for training");
    if (!model_ || !model_->ok()) return Good(Check::kMemory, "memory", detail);
    const auto file = static_cast<int64_t>((*model_)->base->file().bytes().size());
    if (file + kWorkBytes <= limit) return Good(Check::kMemory, "memory", detail);
    Bad(Check::kMemory, "memory",
        absl::StrCat(detail, ", the model's file alone takes ", FormatMegabytes(file)),
        "raise memory_limit, or take part in a run of a smaller model");
  }

  void ClockError() {
    if (!answer_.ok() || answer_->server_time_ms() == 0) {
      return Good(Check::kClock, "clock",
                  absl::StrCat(
                      absl::FormatTime(absl::RFC3339_sec, parts_.clock->Now(), absl::UTCTimeZone()),
                      ", not compared: the server did not tell its time"));
    }
    const absl::Duration error = asked_at_ - absl::FromUnixMillis(answer_->server_time_ms());
    const std::string detail = absl::StrCat(
        absl::FormatDuration(absl::Trunc(error, absl::Seconds(1))), " from the server's");
    if (absl::AbsDuration(error) <= kMaxClockError) return Good(Check::kClock, "clock", detail);
    Bad(Check::kClock, "clock", detail, "set the clock: timedatectl set-ntp true");
  }

  void Dns() {
    const std::string host = settings_.server.substr(0, settings_.server.rfind(':'));
    addrinfo* found = nullptr;
    const int error = getaddrinfo(host.c_str(), nullptr, nullptr, &found);
    if (error == 0) {
      freeaddrinfo(found);
      return Good(Check::kDns, "dns", absl::StrCat(host, " has an address"));
    }
    Bad(Check::kDns, "dns", absl::StrCat(host, ": ", gai_strerror(error)),
        "check the name in `server`, and the device's DNS (resolvectl status)");
  }

  void Tls() {
    if (parts_.identity == nullptr) {
      return Good(Check::kTls, "tls", "off (insecure): for a server on this machine");
    }
    const TlsFinding found = ProbeTls(*parts_.identity, kTlsTimeout);
    if (!found.status.ok()) {
      return Bad(Check::kTls, "tls", absl::StrCat(settings_.server, ": ", found.status.message()),
                 RemedyOf(found.status));
    }
    const absl::Time now = parts_.clock->Now();
    const Certificate& own = parts_.identity->certificate;
    const std::string dates =
        absl::StrCat(found.version, ", the server's certificate is of this federation and ends ",
                     Day(found.server->not_after()), ", this device's ends ", Day(own.not_after()),
                     "; they name no host, so any address will do");
    if (now < found.server->not_before() || now > found.server->not_after()) {
      return Bad(Check::kTls, "tls",
                 absl::StrCat(dates, "; by this device's clock it is ", Day(now)),
                 "set the clock: timedatectl set-ntp true (devices do not go by these dates)");
    }
    if (now > own.not_after()) {
      return Bad(Check::kTls, "tls", dates,
                 absl::StrCat("ask for a token of this node (fedge token create --node ",
                              parts_.identity->node_id(), ") and join again"));
    }
    Good(Check::kTls, "tls", dates);
  }

  static std::string Day(absl::Time time) {
    return absl::FormatTime("%Y-%m-%d %H:%M UTC", time, absl::UTCTimeZone());
  }

  static std::string RemedyOf(const absl::Status& status) {
    switch (status.code()) {
      case absl::StatusCode::kUnavailable:
        return "is the server up, and its port open from here?";
      case absl::StatusCode::kAborted:
        return "is it the server's `listen` port? Something between that ends TLS must pass it on";
      case absl::StatusCode::kUnauthenticated:
        return "is it the right server? If its authority was replaced, join again with a new token";
      default:
        return "ask its operator whether this node was revoked; if not, join again with a new "
               "token";
    }
  }

  void Server() {
    if (answer_.ok()) {
      return Good(Check::kServer, "server", absl::StrCat(settings_.server, " answers"));
    }
    // A server from before the offer refuses the question, and is there.
    if (absl::IsInvalidArgument(answer_.status())) {
      return Good(Check::kServer, "server", absl::StrCat(settings_.server, " is there"));
    }
    Bad(Check::kServer, "server", answer_.status().message(),
        "is the server up, and its port open from here?");
  }

  void Model() {
    if (!model_) {
      if (answer_.ok() && answer_->base_model().served()) {
        return Good(Check::kModel, "model", "none yet; the daemon will fetch it");
      }
      return Bad(Check::kModel, "model", "none yet, and the server does not give it away",
                 "copy the server's model here and give it with --model");
    }
    if (!model_->ok()) {
      return Bad(Check::kModel, "model", model_->status().message(),
                 settings_.model.empty() ? "start the daemon: it fetches it again"
                                         : "copy the server's model there again");
    }
    const Digest digest = (*model_)->base->sha256();
    if (answer_.ok() && answer_->has_base_model() &&
        answer_->base_model().content().sha256() != digest.Raw()) {
      const absl::StatusOr<Digest> wanted = DigestFromRaw(answer_->base_model().content().sha256());
      return Bad(Check::kModel, "model",
                 absl::StrCat((*model_)->path, ": SHA-256 ", digest.Hex(), ", the server's is ",
                              wanted.ok() ? wanted->Hex() : "malformed"),
                 "copy the server's model here, or leave `model` out: then it is fetched");
    }
    Good(Check::kModel, "model", absl::StrCat((*model_)->path, ": SHA-256 ", digest.Hex()));
  }

  void Data() {
    if (!model_ || !model_->ok()) {
      if (parts_.env->Exists(settings_.data) || parts_.env->IsDirectory(settings_.data)) {
        return Good(Check::kData, "data", absl::StrCat(settings_.data, " is there"));
      }
      return Bad(Check::kData, "data", absl::StrCat(settings_.data, ": not there"),
                 "give --data a JSONL or text file, or a folder of them");
    }
    const absl::StatusOr<ChatFormat> format =
        RecognizeChatTemplate((*model_)->base->tokenizer().chat_template());
    const absl::StatusOr<std::vector<Record>> records =
        format.ok() ? ReadRecords(settings_.data, *format, DatasetLimits(), *parts_.env)
                    : absl::StatusOr<std::vector<Record>>(format.status());
    if (records.ok() && !records->empty()) {
      return Good(Check::kData, "data",
                  absl::StrCat(settings_.data, ": ", records->size(), " records"));
    }
    Bad(Check::kData, "data",
        records.ok() ? absl::StrCat(settings_.data, ": no records") : records.status().message(),
        "give --data a JSONL or text file, or a folder of them");
  }

  void Policy(const DeviceConditions& now) {
    const PolicyDecision decision = Decide(settings_.policy, now, PolicyDecision());
    if (decision.allowed()) return Good(Check::kPolicy, "policy", "this device may work now");
    Bad(Check::kPolicy, "policy",
        absl::StrJoin(decision.reasons, "; ",
                      [](std::string* out, const RefusalReason& reason) {
                        absl::StrAppend(out, reason.text);
                      }),
        "it waits until that has passed; change `policy` if it should not");
  }

  const ClientSettings& settings_;
  const DoctorParts& parts_;
  std::vector<Finding> findings_;
  absl::StatusOr<v1::CheckInResponse> answer_;
  absl::Time asked_at_;
  std::optional<absl::StatusOr<ModelFile>> model_;  // nothing: none there
};

}  // namespace

std::vector<Finding> Examine(const ClientSettings& settings, const DoctorParts& parts) {
  return Doctor(settings, parts).Run();
}

}  // namespace fedge
