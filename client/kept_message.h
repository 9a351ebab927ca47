// A protobuf message that a device keeps on disk: with a version and a checksum around it, so that
// what is damaged or foreign is known as such.
#ifndef FEDGE_CLIENT_KEPT_MESSAGE_H_
#define FEDGE_CLIENT_KEPT_MESSAGE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace google::protobuf {
class MessageLite;
}  // namespace google::protobuf

namespace fedge {

std::string SealMessage(const google::protobuf::MessageLite& message);

// DataLoss, naming `what`, when the bytes are not those of SealMessage.
absl::Status UnsealMessage(absl::string_view bytes, absl::string_view what,
                           google::protobuf::MessageLite& message);

}  // namespace fedge

#endif  // FEDGE_CLIENT_KEPT_MESSAGE_H_
