#include "server/federation_server.h"

#include <unistd.h>

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/address.h"
#include "common/base/status.h"
#include "common/base/thread_pool.h"
#include "common/training/adapter_init.h"
#include "server/sqlite_store.h"
#include "server/upload_buffer.h"

namespace fedge {
namespace {

constexpr char kDefaultListen[] = "127.0.0.1:9480";
constexpr char kDefaultStateDir[] = "fedge-server-state";
constexpr uint32_t kMaxCertificateHours = 2160;

std::string StateDir(const v1::ServerConfig& config) {
  return config.has_state_dir() ? config.state_dir() : kDefaultStateDir;
}

std::string ListenAddress(const v1::ServerConfig& config) {
  return config.has_listen() ? config.listen() : kDefaultListen;
}

// Of a checked `listen`.
absl::StatusOr<HostPort> ListenHostPort(const v1::ServerConfig& config) {
  return ParseHostPort(ListenAddress(config), "listen:", 0);
}

absl::Status CheckListeners(const v1::ServerConfig& config) {
  RETURN_IF_ERROR(CheckListenAddress(ListenAddress(config)));
  if (config.insecure()) return CheckLoopback(ListenAddress(config));
  if (config.has_enroll_listen()) {
    RETURN_IF_ERROR(CheckListenAddress(config.enroll_listen(), "enroll_listen"));
  }
  if (config.has_certificate_hours() &&
      (config.certificate_hours() < 1 || config.certificate_hours() > kMaxCertificateHours)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "certificate_hours: ", config.certificate_hours(), " is not 1 to ", kMaxCertificateHours));
  }
  return absl::OkStatus();
}

// What needs no file: asked first, before a big model is loaded or anything is made.
absl::Status CheckFields(const v1::ServerConfig& config) {
  RETURN_IF_ERROR(MakeRunPlan(config, LoraSpec(), Digest()).status());
  return CheckListeners(config);
}

absl::StatusOr<std::shared_ptr<const BaseModel>> LoadModel(const v1::ServerConfig& config,
                                                           Env& env) {
  if (config.base_model().empty()) {
    return absl::InvalidArgumentError(
        "base_model: is required: the path of a GGUF file (in the configuration or --base-model)");
  }
  return BaseModel::Load(config.base_model(), env);
}

absl::StatusOr<std::unique_ptr<HoldoutEvaluator>> MakeHoldout(
    const v1::ServerConfig& config, std::shared_ptr<const BaseModel> model, const RunPlan& plan,
    int threads, Env& env) {
  if (config.holdout().empty()) return std::unique_ptr<HoldoutEvaluator>();
  return HoldoutEvaluator::Create(std::move(model), config.holdout(), plan.length, threads, env);
}

// Version 0, if the run in `store` has not got beyond it: it may take a second file and a minute.
absl::StatusOr<LoraAdapter> MakeInitial(const RunPlan& plan, const BaseModel& model, Store& store,
                                        const FederationServerOptions& options) {
  LoraAdapter initial(plan.lora);
  ASSIGN_OR_RETURN(const std::optional<VersionRecord> latest, store.LatestVersion(plan.run_id));
  if (latest) return initial;
  ThreadPool pool(options.threads);
  const absl::Status status =
      InitializeAdapter(plan.init, model, AdapterSeed(plan), pool, *options.env, initial);
  if (!status.ok()) return Annotate(status, "run.lora.init");
  return initial;
}

absl::StatusOr<std::unique_ptr<FederationCore>> MakeCore(const v1::ServerConfig& config,
                                                         const RunPlan& plan,
                                                         const BaseModel& model,
                                                         const FederationServerOptions& options,
                                                         HoldoutEvaluator* holdout) {
  SqliteStoreOptions store_options;
  store_options.dir = StateDir(config);
  if (config.has_keep_versions()) store_options.keep_versions = config.keep_versions();
  ASSIGN_OR_RETURN(std::unique_ptr<SqliteStore> store,
                   SqliteStore::Open(store_options, *options.env));
  UploadLimits limits;
  limits.max_upload_bytes = plan.max_update_bytes;
  limits.lifetime = 2 * plan.round_deadline;
  if (config.has_max_open_upload_bytes()) limits.max_total_bytes = config.max_open_upload_bytes();
  ASSIGN_OR_RETURN(std::unique_ptr<UploadBuffer> uploads,
                   UploadBuffer::Open(JoinPath(store_options.dir, "uploads"), limits, *options.env,
                                      *options.clock));
  ASSIGN_OR_RETURN(const LoraAdapter initial, MakeInitial(plan, model, *store, options));
  FederationCoreOptions core_options;
  core_options.clock = options.clock;
  core_options.events = options.events;
  if (holdout != nullptr) core_options.events.push_back(holdout);
  core_options.config = config.SerializeAsString();
  return FederationCore::Create(plan, initial, std::move(store), std::move(uploads),
                                std::move(core_options));
}

absl::StatusOr<std::unique_ptr<Membership>> OpenMembership(const v1::ServerConfig& config,
                                                           const FederationServerOptions& options) {
  MembershipOptions membership;
  membership.dir = JoinPath(StateDir(config), "identity");
  membership.env = options.env;
  membership.clock = options.clock;
  if (config.has_certificate_hours()) {
    membership.node_lifetime = absl::Hours(config.certificate_hours());
  }
  return Membership::Open(std::move(membership));
}

// The port after that of `listen`, any if that is any.
absl::StatusOr<std::string> EnrollListen(const v1::ServerConfig& config) {
  if (config.has_enroll_listen()) return config.enroll_listen();
  ASSIGN_OR_RETURN(HostPort address, ListenHostPort(config));
  if (address.port != 0) ++address.port;
  return address.Text();
}

// What devices reach this machine by, as far as it can know.
absl::StatusOr<std::string> PublicHost(const v1::ServerConfig& config) {
  if (config.has_public_host()) return config.public_host();
  ASSIGN_OR_RETURN(const HostPort address, ListenHostPort(config));
  if (address.host != "0.0.0.0" && address.host != "[::]") return address.host;
  char name[256] = {};
  return std::string(gethostname(name, sizeof(name) - 1) == 0 ? name : "localhost");
}

}  // namespace

absl::StatusOr<RunPlan> PlanRun(const v1::ServerConfig& config, const BaseModel& model) {
  ASSIGN_OR_RETURN(const LoraPlan lora, MakeLoraPlan(config.run()));
  absl::StatusOr<LoraSpec> spec = model.MakeLoraSpec(lora.targets);
  if (!spec.ok()) return Annotate(spec.status(), "run.lora");
  ASSIGN_OR_RETURN(RunPlan plan, MakeRunPlan(config, *std::move(spec), model.sha256()));
  if (plan.length > model.config().context_length) {
    return absl::InvalidArgumentError(absl::StrCat("run.training.length: ", plan.length,
                                                   " is above the base model's context of ",
                                                   model.config().context_length));
  }
  return plan;
}

absl::Status CheckServerConfig(const v1::ServerConfig& config, Env& env) {
  RETURN_IF_ERROR(CheckFields(config));
  ASSIGN_OR_RETURN(const std::shared_ptr<const BaseModel> model, LoadModel(config, env));
  ASSIGN_OR_RETURN(const RunPlan plan, PlanRun(config, *model));
  return MakeHoldout(config, model, plan, 1, env).status();
}

absl::StatusOr<std::unique_ptr<FederationServer>> FederationServer::Start(
    const v1::ServerConfig& config, const FederationServerOptions& options) {
  RETURN_IF_ERROR(CheckFields(config));
  std::unique_ptr<FederationServer> server(new FederationServer);
  ASSIGN_OR_RETURN(server->model_, LoadModel(config, *options.env));
  ASSIGN_OR_RETURN(const RunPlan plan, PlanRun(config, *server->model_));
  ASSIGN_OR_RETURN(server->holdout_,
                   MakeHoldout(config, server->model_, plan, options.threads, *options.env));
  ASSIGN_OR_RETURN(server->core_,
                   MakeCore(config, plan, *server->model_, options, server->holdout_.get()));
  GrpcServerOptions grpc_options;
  grpc_options.listen = ListenAddress(config);
  if (!config.insecure()) {
    ASSIGN_OR_RETURN(server->membership_, OpenMembership(config, options));
    grpc_options.membership = server->membership_.get();
    ASSIGN_OR_RETURN(grpc_options.enroll_listen, EnrollListen(config));
  }
  ASSIGN_OR_RETURN(server->grpc_, GrpcServer::Start(*server->core_, grpc_options));
  if (server->membership_ != nullptr) {
    ASSIGN_OR_RETURN(const std::string host, PublicHost(config));
    server->membership_->set_address(HostPort{host, server->grpc_->enroll_port()}.Text());
  }
  if (server->holdout_ != nullptr) server->holdout_->Start(*server->core_);
  return server;
}

FederationServer::~FederationServer() { Shutdown(absl::ZeroDuration()); }

void FederationServer::Shutdown(absl::Duration grace) {
  if (grpc_ != nullptr) grpc_->Shutdown(grace);
  if (holdout_ != nullptr) holdout_->Stop();
  if (core_ != nullptr) core_->Flush();
}

}  // namespace fedge
