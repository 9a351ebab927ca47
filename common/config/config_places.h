// Where a configuration file says what, so that an error found later still names the line.
#ifndef FEDGE_COMMON_CONFIG_CONFIG_PLACES_H_
#define FEDGE_COMMON_CONFIG_CONFIG_PLACES_H_

#include <map>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace google::protobuf {
class Descriptor;
}  // namespace google::protobuf

namespace fedge {

// Filled by ParseConfig (common/config/config_file.h).
class ConfigPlaces {
 public:
  // From here on about the file `name`, whose schema is `descriptor` (which must stay).
  void Start(absl::string_view name, const google::protobuf::Descriptor& descriptor);
  // The field of this path ("run.lora.rank", "run.node_ranks[1].share") is written there; lines and
  // columns count from 1.
  void Add(const std::string& path, int line, int column);
  // The field has its value from elsewhere: a flag.
  void Override(const std::string& path);

  // An error whose message begins with the path of a field ("run.lora.rank: 5000 is above 1024")
  // with "<name>:<line>:<column>: " before it. The place of a field that is not written is that of
  // the innermost part around it that is, else only the name. Other errors stay as they are.
  absl::Status Locate(const absl::Status& error) const;

 private:
  std::string name_;
  const google::protobuf::Descriptor* descriptor_ = nullptr;
  std::map<std::string, std::pair<int, int>, std::less<>> places_;
  std::set<std::string, std::less<>> elsewhere_;
};

}  // namespace fedge

#endif  // FEDGE_COMMON_CONFIG_CONFIG_PLACES_H_
