#include "client/adapter_folder.h"

#include <google/protobuf/util/json_util.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "common/formats/adapter_files.h"

namespace fedge {
namespace {

constexpr uint64_t kMaxChoiceBytes = 1 << 16;
constexpr char kGlobal[] = "global";
constexpr char kPersonal[] = "personal";
constexpr char kUnfinished[] = ".unfinished";

std::string GlobalName(uint64_t version) { return absl::StrCat("v", version); }
std::string PersonalName(uint64_t version) { return absl::StrCat("p", version); }

// v12, p12, and what a killed process left of one.
bool IsOurs(absl::string_view entry) {
  return entry.size() > 2 && (entry[0] == 'v' || entry[0] == 'p') && entry[1] >= '0' &&
         entry[1] <= '9' && entry.back() == '/';
}

}  // namespace

absl::Status WriteAdapterBothWays(const LoraAdapter& adapter, const BaseModel& base,
                                  const std::string& base_name, const std::string& dir, Env& env) {
  AdapterInfo info;
  info.base_model = base_name;
  info.base_model_sha256 = base.sha256().Hex();
  info.num_heads = base.config().head_count;
  info.num_kv_heads = base.config().head_count_kv;
  RETURN_IF_ERROR(env.CreateDirs(dir));
  RETURN_IF_ERROR(WriteAdapterGguf(adapter, info, JoinPath(dir, "adapter.gguf"), env));
  return WriteAdapterPeft(adapter, info, JoinPath(dir, "peft"), env);
}

AdapterFolder::AdapterFolder(std::string dir, std::shared_ptr<const BaseModel> base,
                             std::string base_name, Env* env, std::function<void()> on_change)
    : dir_(std::move(dir)),
      base_(std::move(base)),
      base_name_(std::move(base_name)),
      env_(env),
      on_change_(std::move(on_change)) {
  // What a killed process was writing goes; the folder may hold files of others.
  for (const std::string& entry : env_->ListDir(dir_).value_or(std::vector<std::string>())) {
    if (absl::StartsWith(entry, "choice.json.tmp-")) env_->Remove(Path(entry)).IgnoreError();
  }
  const absl::StatusOr<std::string> text = env_->ReadFile(Path("choice.json"), kMaxChoiceBytes);
  v1::AdapterChoice kept;
  if (text.ok() && google::protobuf::util::JsonStringToMessage(*text, &kept).ok() &&
      kept.base_model_sha256() == base_->sha256().Hex()) {
    choice_ = std::move(kept);
  }
}

absl::Status AdapterFolder::Write(const LoraAdapter& adapter, const std::string& name) {
  const std::string unfinished = Path(name + kUnfinished);
  for (const std::string& old : {unfinished, Path(name)}) {
    if (env_->IsDirectory(old)) RETURN_IF_ERROR(env_->Remove(old));
  }
  const auto write = [&]() -> absl::Status {
    RETURN_IF_ERROR(WriteAdapterBothWays(adapter, *base_, base_name_, unfinished, *env_));
    RETURN_IF_ERROR(env_->Rename(unfinished, Path(name)));
    return env_->SyncDir(dir_);
  };
  const absl::Status written = FEDGE_FAILPOINT_RUN("client.adapter_files", write());
  if (!written.ok()) env_->Remove(unfinished).IgnoreError();
  return written;
}

absl::Status AdapterFolder::Link(const std::string& link, const std::string& name) {
  // The one thing done past Env, which knows no links; the rename that puts it in place is not.
  const std::string temporary = Path(link + ".new");
  const auto replace = [&]() -> absl::Status {
    std::error_code error;
    std::filesystem::remove(temporary, error);
    std::filesystem::create_symlink(name, temporary, error);
    if (error) {
      return absl::InternalError(
          absl::StrCat(temporary, ": cannot make a link: ", error.message()));
    }
    RETURN_IF_ERROR(env_->Rename(temporary, Path(link)));
    return env_->SyncDir(dir_);
  };
  return FEDGE_FAILPOINT_RUN("client.adapter_link", replace());
}

absl::Status AdapterFolder::PutGlobal(const LoraAdapter& adapter, const std::string& run_id,
                                      uint64_t version) {
  if (choice_.run_id() == run_id && choice_.has_version() && choice_.version() == version &&
      env_->Exists(Path("current/adapter.gguf"))) {
    return absl::OkStatus();
  }
  if (choice_.run_id() != run_id) choice_.Clear();  // what was best there says nothing here
  const std::string name = GlobalName(version);
  RETURN_IF_ERROR(Write(adapter, name));
  RETURN_IF_ERROR(Link("current", name));
  choice_.set_run_id(run_id);
  choice_.set_base_model_sha256(base_->sha256().Hex());
  choice_.set_version(version);
  choice_.clear_global_loss();
  if (choice_.best() != kPersonal) {
    RETURN_IF_ERROR(Link("best", name));
    choice_.set_best(kGlobal);
  }
  RETURN_IF_ERROR(SaveChoice());
  RemoveUnused();
  if (on_change_) on_change_();
  return absl::OkStatus();
}

absl::Status AdapterFolder::PutTrained(const LoraAdapter& personal, const LocalLosses& losses) {
  if (!choice_.has_version() || choice_.version() != losses.version) return absl::OkStatus();
  const bool comparable = choice_.best() == kPersonal && choice_.sample() == losses.sample;
  const double held = comparable ? choice_.personal_loss() : losses.personal_loss;
  choice_.set_global_loss(losses.global_loss);
  choice_.set_validation_tokens(static_cast<uint64_t>(losses.tokens));
  choice_.set_sample(losses.sample);
  const bool keeps = comparable && held <= losses.personal_loss && held < losses.global_loss;
  if (keeps) return SaveChoice();
  choice_.set_personal_loss(losses.personal_loss);
  choice_.set_personal_version(losses.version);
  if (losses.personal_loss < losses.global_loss) {
    const std::string name = PersonalName(losses.version);
    RETURN_IF_ERROR(Write(personal, name));
    RETURN_IF_ERROR(Link("best", name));
    choice_.set_best(kPersonal);
  } else {
    RETURN_IF_ERROR(Link("best", GlobalName(losses.version)));
    choice_.set_best(kGlobal);
  }
  RETURN_IF_ERROR(SaveChoice());
  RemoveUnused();
  if (on_change_) on_change_();
  return absl::OkStatus();
}

absl::Status AdapterFolder::SaveChoice() {
  choice_.set_path(Path("best"));
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.add_whitespace = true;
  std::string text;
  (void)google::protobuf::util::MessageToJsonString(choice_, &text, options);
  return env_->WriteFileAtomic(Path("choice.json"), text);
}

void AdapterFolder::RemoveUnused() {
  const std::string best = choice_.best() == kPersonal ? PersonalName(choice_.personal_version())
                                                       : GlobalName(choice_.version());
  const absl::StatusOr<std::vector<std::string>> entries = env_->ListDir(dir_);
  if (!entries.ok()) return;
  for (const std::string& entry : *entries) {
    const absl::string_view name = absl::StripSuffix(entry, "/");
    if (!IsOurs(entry) || name == best || name == GlobalName(choice_.version())) continue;
    env_->Remove(Path(std::string(name))).IgnoreError();  // the next change tries again
  }
}

}  // namespace fedge
