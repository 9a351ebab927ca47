// A device's answer to a task in one message, as a server takes it.
#ifndef FEDGE_TESTS_SERVER_UPLOAD_MESSAGE_H_
#define FEDGE_TESTS_SERVER_UPLOAD_MESSAGE_H_

#include <string>

#include "common/base/digest.h"
#include "fedge/v1/federation.pb.h"
#include "tests/server/tiny_run.h"

namespace fedge::testing {

inline v1::UploadRequest MakeUploadMessage(const RunPlan& plan, const v1::Assignment& task,
                                           const std::string& node) {
  const std::string bytes = MakeUpdate(
      plan, {.round = task.round(), .base_version = task.adapter_version(), .seed = task.seed()});
  v1::UploadRequest message;
  message.mutable_id()->set_run_id(task.run_id());
  message.mutable_id()->set_round(task.round());
  message.mutable_id()->set_node_id(node);
  message.mutable_id()->set_sha256(Sha256Of(bytes).Raw());
  message.mutable_id()->set_size_bytes(bytes.size());
  message.mutable_chunk()->set_data(bytes);
  message.mutable_chunk()->set_crc32c(Crc32c(bytes));
  return message;
}

}  // namespace fedge::testing

#endif  // FEDGE_TESTS_SERVER_UPLOAD_MESSAGE_H_
