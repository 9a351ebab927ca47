#include "tests/robustness/joining_devices.h"

#include <cstdlib>
#include <memory>
#include <sstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/node_identity.h"
#include "client/server_link.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "common/base/status.h"
#include "server/identity_store.h"
#include "tests/robustness/toy_link.h"
#include "tests/robustness/toy_operator.h"

namespace fedge::robustness {
namespace {

constexpr int kDevices = 3;

std::string NameOf(int device) { return absl::StrCat("joiner-", device); }

std::string FolderOf(const std::string& state_dir, const std::string& node) {
  return JoinPath(DirName(state_dir), node);
}

// Where the newest server lets devices join.
std::string JoiningAddress(const std::string& server_log) {
  const std::string log = Env::Posix()->ReadFile(server_log).value_or(std::string());
  const std::string words = "devices join on port ";
  const size_t at = log.rfind(words);
  if (at == std::string::npos) return "";
  return absl::StrCat("127.0.0.1:", std::atoi(log.c_str() + at + words.size()));
}

absl::Status Join(ToyOperator& admin, const std::string& server_log, const std::string& state_dir,
                  const std::string& node) {
  v1::TokenCreateResponse token;
  v1::TokenCreateRequest wanted;
  wanted.set_address("127.0.0.1:1");  // the device is told a better one
  RETURN_IF_ERROR(admin.Call("token", wanted, &token, &v1::AdminService::Stub::TokenCreate));
  return Insist("join", [&]() -> absl::StatusOr<bool> {
    const absl::Status status = JoinFederation({.url = JoiningAddress(server_log),
                                                .token = token.token(),
                                                .node_id = node,
                                                .state_dir = FolderOf(state_dir, node)},
                                               *Env::Posix(), *Clock::Real())
                                    .status();
    if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) return false;
    RETURN_IF_ERROR(status);
    return true;
  });
}

absl::Status CheckMembers(IdentityStore& store, const std::string& state_dir,
                          const std::string& journal, CaseResult& result) {
  std::istringstream lines(Env::Posix()->ReadFile(journal).value_or(std::string()));
  ASSIGN_OR_RETURN(const NameSet revoked, store.RevokedNodes());
  uint64_t joined = 0;
  for (std::string kind, node; lines >> kind >> node;) {
    if (kind == "revoked" && revoked.count(node) == 0) {
      return absl::DataLossError(absl::StrCat("the revocation of ", node, " is lost"));
    }
    if (kind != "joined") continue;
    ++joined;
    ASSIGN_OR_RETURN(const NodeIdentity identity,
                     IdentityFolder(FolderOf(state_dir, node), Env::Posix()).Load());
    ASSIGN_OR_RETURN(const auto member, store.FindMember(node));
    if (member && member->key == identity.key.public_key().Fingerprint()) continue;
    ++result.lost;
    return absl::DataLossError(absl::StrCat(node, " joined and is no member"));
  }
  ASSIGN_OR_RETURN(const uint64_t members, store.CountMembers());
  if (members == joined) return absl::OkStatus();
  ++result.doubled;
  return absl::DataLossError(absl::StrCat(joined, " devices joined, ", members, " are members"));
}

// A token whose making was not answered is there, too, and unused.
absl::Status CheckTokens(IdentityStore& store, CaseResult& result) {
  ASSIGN_OR_RETURN(const std::vector<TokenRecord> tokens, store.ListTokens());
  int used = 0;
  for (const TokenRecord& token : tokens) {
    used += static_cast<int>(token.used);
    if (token.used > token.uses) ++result.doubled;
  }
  if (used == kDevices && result.doubled == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(used, " uses of tokens by ", kDevices, " devices"));
}

}  // namespace

absl::Status PlayJoiningDevices(const v1::ServerConfig& config, const std::string& server_log,
                                const std::string& journal) {
  Journal lines(journal);
  ToyOperator admin(config);
  for (int device = 0; device < kDevices; ++device) {
    RETURN_IF_ERROR(Join(admin, server_log, config.state_dir(), NameOf(device)));
    lines.Write(absl::StrCat("joined ", NameOf(device), "\n"));
  }
  v1::NodeRevokeRequest revoked;
  revoked.set_node_id(NameOf(0));
  revoked.set_reason("lost");
  v1::NodeRevokeResponse answer;
  RETURN_IF_ERROR(admin.Call("revoke", revoked, &answer, &v1::AdminService::Stub::NodeRevoke));
  lines.Write(absl::StrCat("revoked ", NameOf(0), "\n"));
  return absl::OkStatus();
}

void CheckJoinedDevices(const std::string& state_dir, const std::string& journal,
                        CaseResult& result) {
  const auto check = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::unique_ptr<IdentityStore> store,
                     IdentityStore::Open(JoinPath(state_dir, "identity/identity.db")));
    RETURN_IF_ERROR(CheckMembers(*store, state_dir, journal, result));
    return CheckTokens(*store, result);
  };
  const absl::Status status = check();
  if (!status.ok() && result.problem.empty()) result.problem = std::string(status.message());
}

}  // namespace fedge::robustness
