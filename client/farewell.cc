#include "client/farewell.h"

#include "absl/strings/str_cat.h"
#include "client/kept_message.h"
#include "client/transfer.h"
#include "fedge/v1/client.pb.h"

namespace fedge {

std::vector<std::string> SayFarewell(const std::string& node_id, StateStore& outbox,
                                     StateStore& checkpoints, FederationLink& link, Clock& clock) {
  std::vector<std::string> lines;
  Transfer transfer(&link, &clock, RetryPolicy{.max_attempts = 1}, 0);
  const absl::StatusOr<std::string> finished = outbox.Read(node_id);
  v1::OutboxEntry entry;
  if (finished.ok() && UnsealMessage(*finished, "outbox", entry).ok()) {
    const absl::StatusOr<v1::UploadReceipt> receipt =
        transfer.Submit(entry.id(), entry.metrics(), entry.update());
    lines.push_back(absl::StrCat(
        "the finished update of round ", entry.id().round(), ": ",
        receipt.ok() ? v1::UploadReceipt::Verdict_Name(receipt->verdict())
                     : absl::StrCat("not sent, and dropped: ", receipt.status().message())));
  }
  const absl::StatusOr<std::string> begun = checkpoints.Read(node_id);
  v1::TrainingCheckpoint checkpoint;
  if (begun.ok() && UnsealMessage(*begun, "checkpoint", checkpoint).ok()) {
    v1::ReportRequest report;
    report.set_run_id(checkpoint.assignment().run_id());
    report.set_round(checkpoint.assignment().round());
    report.set_node_id(node_id);
    report.set_completed(false);
    report.set_error("the node leaves the run");
    const absl::Status sent = transfer.Report(report);
    lines.push_back(absl::StrCat(
        "the training of round ", report.round(), " ends here",
        sent.ok() ? "" : "; the server was not told: ", sent.ok() ? "" : sent.message()));
  }
  return lines;
}

}  // namespace fedge
