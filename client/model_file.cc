#include "client/model_file.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/http_download.h"
#include "client/transfer.h"
#include "common/base/digest.h"
#include "common/base/failpoint.h"
#include "common/base/logging.h"
#include "common/base/rng.h"
#include "common/base/status.h"

namespace fedge {
namespace {

constexpr absl::Duration kFirstPause = absl::Seconds(5);
constexpr absl::Duration kLongestPause = absl::Minutes(10);
constexpr int kMaxWrongWholes = 3;
constexpr char kPart[] = ".part";

struct Wanted {
  Digest digest;
  uint64_t size = 0;
};

std::string FileName(const Digest& digest) { return digest.Hex() + ".gguf"; }

// One fetching.
class Fetching {
 public:
  Fetching(const ModelFetchOptions& options, FederationLink& link, Clock& clock, Env& env)
      : options_(options),
        link_(link),
        clock_(clock),
        env_(env),
        jitter_(Rng::Stream(options.seed, "model-jitter")) {}

  absl::StatusOr<ModelFile> Run() {
    RETURN_IF_ERROR(env_.CreateDirs(options_.folder));
    absl::StatusOr<Wanted> wanted = Ask();
    if (IsRetryable(wanted.status())) {
      const absl::StatusOr<ModelFile> held = OpenHeld();
      if (held.ok()) return held;
    }
    if (!wanted.ok()) {
      RETURN_IF_ERROR(Patiently(wanted.status(), [&] {
        wanted = Ask();
        return wanted.status();
      }));
    }
    for (int wrong = 0;; ++wrong) {
      const absl::StatusOr<ModelFile> held = Open(*wanted);
      if (held.ok()) {
        RemoveOthers(wanted->digest);
        return held;
      }
      if (!absl::IsNotFound(held.status()) && !absl::IsDataLoss(held.status())) return held;
      if (wrong >= kMaxWrongWholes) return held;
      LogInfo("fetching the base model ", wanted->digest.Hex().substr(0, 12), ", ", wanted->size,
              " bytes, from ", options_.url.empty() ? "the server" : options_.url);
      RETURN_IF_ERROR(Patiently(absl::OkStatus(), [&] { return FetchOnce(*wanted); }));
    }
  }

 private:
  std::string Path(absl::string_view name) const { return JoinPath(options_.folder, name); }
  bool stopping() const { return options_.stopping && options_.stopping(); }

  // What the server's run trains.
  absl::StatusOr<Wanted> Ask() {
    v1::CheckInRequest request;
    request.set_node_id(options_.node_id);
    const absl::StatusOr<v1::CheckInResponse> response = link_.CheckIn(request);
    if (response.ok() && response->has_retry()) {  // it has no run yet
      return absl::UnavailableError(absl::CHexEscape(response->retry().reason()));
    }
    // A server from before the offer calls the question malformed.
    if (absl::IsInvalidArgument(response.status()) ||
        (response.ok() && !response->has_base_model())) {
      return absl::FailedPreconditionError(
          "the server does not name its base model; give a copy of the file with --model");
    }
    RETURN_IF_ERROR(response.status());
    const v1::CheckInResponse& answer = *response;
    Wanted wanted;
    ASSIGN_OR_RETURN(wanted.digest, DigestFromRaw(answer.base_model().content().sha256()));
    wanted.size = answer.base_model().content().size_bytes();
    if (options_.url.empty() && !answer.base_model().served()) {
      return absl::FailedPreconditionError(
          absl::StrCat("the server does not give its base model (SHA-256 ", wanted.digest.Hex(),
                       ") away; give a copy of the file with --model, or its place as model_url"));
    }
    return wanted;
  }

  // Runs `attempt` until it succeeds or fails for good. `status`: of an attempt made already.
  absl::Status Patiently(absl::Status status, const std::function<absl::Status()>& attempt) {
    for (int failures = 0;; ++failures) {
      if (stopping() || (options_.await_permission && !options_.await_permission())) {
        return absl::CancelledError("stopping");
      }
      if (failures > 0 || status.ok()) status = attempt();
      if (status.ok()) return status;
      if (!IsRetryable(status)) return status;
      const absl::Duration pause =
          std::min(kFirstPause * (int64_t{1} << std::min(failures, 20)), kLongestPause) *
          (0.5 + jitter_.Uniform());
      if (options_.on_wait) options_.on_wait(status, pause);
      clock_.Sleep(pause);
    }
  }

  absl::StatusOr<ModelFile> Open(const Wanted& wanted) {
    const std::string path = Path(FileName(wanted.digest));
    RETURN_IF_ERROR(env_.FileSize(path).status());
    const absl::StatusOr<std::shared_ptr<const BaseModel>> base = BaseModel::Load(path, env_);
    if (base.ok() && (*base)->sha256() == wanted.digest) return ModelFile{path, *base};
    LogWarning(base.ok() ? absl::StrCat(path, ": not what its name says, damaged on the disk")
                         : base.status().message(),
               "; it is fetched again");
    RETURN_IF_ERROR(env_.Remove(path));
    return absl::DataLossError(absl::StrCat(
        path, ": the model came whole but cannot be used; is the server's file good?"));
  }

  // A whole model of before, whatever the server trains now.
  absl::StatusOr<ModelFile> OpenHeld() {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, env_.ListDir(options_.folder));
    for (const std::string& name : names) {
      if (!absl::EndsWith(name, ".gguf")) continue;
      const absl::StatusOr<Digest> digest = ParseDigest(name.substr(0, name.size() - 5));
      if (!digest.ok()) continue;
      const absl::StatusOr<ModelFile> file = Open({*digest, 0});
      if (file.ok()) return file;
    }
    return absl::NotFoundError("no model was fetched yet");
  }

  void RemoveOthers(const Digest& digest) {
    const absl::StatusOr<std::vector<std::string>> names = env_.ListDir(options_.folder);
    if (!names.ok()) return;
    for (const std::string& name : *names) {
      if (name != FileName(digest)) env_.Remove(Path(name)).IgnoreError();
    }
  }

  // From what is there of the file to all of it.
  absl::Status FetchOnce(const Wanted& wanted) {
    const std::string part = Path(FileName(wanted.digest) + kPart);
    uint64_t held = env_.FileSize(part).value_or(0);
    if (held > wanted.size) held = 0;
    ASSIGN_OR_RETURN(const std::unique_ptr<WritableFile> file, env_.OpenForWrite(part, held));
    const absl::Status received = Receive(wanted, *file, held);
    // What came is kept, also of a transfer that broke off.
    RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN("client.model_sync", file->Sync()));
    RETURN_IF_ERROR(file->Close());
    RETURN_IF_ERROR(received);
    ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> whole, env_.Map(part));
    if (whole->bytes().size() != wanted.size || Sha256Of(whole->bytes()) != wanted.digest) {
      RETURN_IF_ERROR(env_.Remove(part));
      if (++wrong_wholes_ < kMaxWrongWholes) {
        return absl::AbortedError("the model came damaged, or is another one; once more");
      }
      return absl::DataLossError(absl::StrCat(options_.url.empty() ? "the server" : options_.url,
                                              ": what it sends is not ", "the model with SHA-256 ",
                                              wanted.digest.Hex()));
    }
    RETURN_IF_ERROR(FEDGE_FAILPOINT_RUN("client.model_rename",
                                        env_.Rename(part, Path(FileName(wanted.digest)))));
    return env_.SyncDir(options_.folder);
  }

  absl::Status Receive(const Wanted& wanted, WritableFile& file, uint64_t held) {
    const auto take = [&](absl::string_view bytes) -> absl::Status {
      if (stopping()) return absl::CancelledError("stopping");
      if (bytes.size() > wanted.size - held) {
        return absl::AbortedError("the model's source sends more than the model has");
      }
      held += bytes.size();
      return file.Append(bytes);
    };
    if (!options_.url.empty()) {
      std::string url = options_.url;
      if (url.back() == '/') url += FileName(wanted.digest);
      ASSIGN_OR_RETURN(const HttpUrl parsed, ParseHttpUrl(url));
      return HttpDownload(parsed, held, take);
    }
    v1::DownloadRequest request;
    request.set_node_id(options_.node_id);
    request.set_sha256(wanted.digest.Raw());
    request.set_offset(held);
    return link_.Download(request, [&](const v1::Chunk& chunk) -> absl::Status {
      if (chunk.offset() != held || Crc32c(chunk.data()) != chunk.crc32c()) {
        return absl::AbortedError("a piece of the model came damaged");
      }
      return take(chunk.data());
    });
  }

  const ModelFetchOptions& options_;
  FederationLink& link_;
  Clock& clock_;
  Env& env_;
  Rng jitter_;
  int wrong_wholes_ = 0;
};

}  // namespace

absl::StatusOr<ModelFile> OpenModelFile(const std::string& path, Env& env) {
  absl::StatusOr<std::shared_ptr<const BaseModel>> base = BaseModel::Load(path, env);
  if (base.ok()) return ModelFile{path, *std::move(base)};
  return absl::Status(base.status().code(),
                      absl::StrCat(base.status().message(),
                                   "; copy the server's model there again (`sha256sum` on both "
                                   "sides tells whether it came whole)"));
}

absl::StatusOr<ModelFile> FetchModelFile(const ModelFetchOptions& options, FederationLink& link,
                                         Clock& clock, Env& env) {
  return Fetching(options, link, clock, env).Run();
}

}  // namespace fedge
