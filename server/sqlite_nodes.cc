// SqliteStore: the nodes and what is remembered of each.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/failpoint.h"
#include "common/base/status.h"
#include "server/sqlite_store.h"

namespace fedge {

absl::Status SqliteStore::TouchNodes(absl::Span<const NodeRecord> nodes) {
  if (nodes.empty()) return absl::OkStatus();
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckUsable());
  ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(*db_));
  {
    ASSIGN_OR_RETURN(SqliteStatement insert,
                     db_->Prepare("INSERT INTO nodes VALUES(?1,?2,?2,?3) ON CONFLICT(node_id) DO "
                                  "UPDATE SET last_seen_us=excluded.last_seen_us, "
                                  "device=excluded.device"));
    for (const NodeRecord& node : nodes) {
      insert.Bind(node.node_id).Bind(absl::ToUnixMicros(node.last_seen)).BindBlob(node.device);
      RETURN_IF_ERROR(Guard(insert.Run()));
      insert.Reset();
    }
  }
  return Guard(FEDGE_FAILPOINT_RUN("store.nodes.commit", Commit(transaction)));
}

absl::StatusOr<uint64_t> SqliteStore::CountNodes() {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const int64_t count, db_->QueryInt("SELECT count(*) FROM nodes"));
  return static_cast<uint64_t>(count);
}

absl::Status SqliteStore::AddCounts(NodeEntry& node) {
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db_->Prepare("SELECT outcome, count(*), sum(wire_bytes) FROM updates "
                                "WHERE node_id=? GROUP BY outcome"));
  query.Bind(node.record.node_id);
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return absl::OkStatus();
    const uint64_t count = query.Unsigned(1);
    switch (static_cast<Outcome>(query.Int(0))) {
      case Outcome::kAccepted:
        node.accepted = count;
        node.update_bytes = query.Unsigned(2);
        break;
      case Outcome::kRejected:
        node.rejected = count;
        break;
      case Outcome::kLate:
        node.late = count;
        break;
      case Outcome::kFailed:
        node.failed = count;
        break;
    }
  }
}

absl::StatusOr<std::vector<NodeEntry>> SqliteStore::QueryNodes(absl::string_view condition,
                                                               absl::string_view id,
                                                               uint64_t limit) {
  std::vector<NodeEntry> nodes;
  {
    ASSIGN_OR_RETURN(SqliteStatement query,
                     db_->Prepare(absl::StrCat(
                         "SELECT node_id, first_seen_us, last_seen_us, device FROM nodes WHERE ",
                         condition, " ORDER BY node_id LIMIT ?")));
    query.Bind(id).Bind(limit);
    for (;;) {
      ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) break;
      NodeEntry& node = nodes.emplace_back();
      node.record.node_id = query.Bytes(0);
      node.first_seen = absl::FromUnixMicros(query.Int(1));
      node.record.last_seen = absl::FromUnixMicros(query.Int(2));
      node.record.device = query.Bytes(3);
    }
  }
  for (NodeEntry& node : nodes) RETURN_IF_ERROR(AddCounts(node));
  return nodes;
}

absl::StatusOr<std::vector<NodeEntry>> SqliteStore::ListNodes(absl::string_view after,
                                                              uint64_t limit) {
  absl::MutexLock lock(&mutex_);
  return QueryNodes("node_id>?", after, limit);
}

absl::StatusOr<NodeEntry> SqliteStore::FindNode(absl::string_view node) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(std::vector<NodeEntry> nodes, QueryNodes("node_id=?", node, 1));
  if (nodes.empty()) {
    return absl::NotFoundError(absl::StrCat("node '", node, "' has never checked in here"));
  }
  return std::move(nodes.front());
}

absl::StatusOr<std::vector<NodeTaskEntry>> SqliteStore::ListNodeTasks(absl::string_view node,
                                                                      uint64_t limit) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(SqliteStatement query,
                   db_->Prepare("SELECT run_id, round, outcome, digest, weight, wire_bytes, "
                                "reason, metrics, when_us FROM updates WHERE node_id=? "
                                "ORDER BY when_us DESC, round DESC LIMIT ?"));
  query.Bind(node).Bind(limit);
  std::vector<NodeTaskEntry> tasks;
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return tasks;
    NodeTaskEntry& task = tasks.emplace_back();
    task.run_id = query.Bytes(0);
    task.record.node_id = std::string(node);
    task.record.round = query.Unsigned(1);
    task.record.outcome = static_cast<Outcome>(query.Int(2));
    ASSIGN_OR_RETURN(task.record.digest, query.DigestAt(3));
    task.record.weight = query.Unsigned(4);
    task.record.wire_bytes = query.Unsigned(5);
    task.record.reason = query.Bytes(6);
    task.record.metrics = query.Bytes(7);
    task.record.when = absl::FromUnixMicros(query.Int(8));
  }
}

}  // namespace fedge
