#include "common/config/config_places.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "google/protobuf/descriptor.h"

namespace fedge {
namespace {

// The path of a field that `message` begins with; empty if it begins with something else.
absl::string_view PathIn(absl::string_view message) {
  size_t end = 0;
  while (end < message.size() &&
         (absl::ascii_isalnum(static_cast<unsigned char>(message[end])) || message[end] == '_' ||
          message[end] == '.' || message[end] == '[' || message[end] == ']')) {
    ++end;
  }
  const bool ends = end < message.size() && (message[end] == ':' || message[end] == ' ');
  return ends ? message.substr(0, end) : absl::string_view();
}

}  // namespace

void ConfigPlaces::Start(absl::string_view name, const google::protobuf::Descriptor& descriptor) {
  name_ = std::string(name);
  descriptor_ = &descriptor;
  places_.clear();
  elsewhere_.clear();
}

void ConfigPlaces::Add(const std::string& path, int line, int column) {
  places_[path] = {line, column};
}

void ConfigPlaces::Override(const std::string& path) { elsewhere_.insert(path); }

absl::Status ConfigPlaces::Locate(const absl::Status& error) const {
  if (error.ok() || descriptor_ == nullptr) return error;
  absl::string_view path = PathIn(error.message());
  const std::string first(path.substr(0, path.find_first_of(".[")));
  const google::protobuf::FieldDescriptor* const field = descriptor_->FindFieldByName(first);
  if (field == nullptr) return error;
  // "run 'x' is not there" speaks of a run, not of the section of that name.
  if (path == first && field->message_type() != nullptr && error.message()[path.size()] == ' ') {
    return error;
  }
  if (elsewhere_.find(path) != elsewhere_.end()) return error;
  for (;;) {
    const auto place = places_.find(path);
    if (place != places_.end()) {
      const auto [line, column] = place->second;
      return Annotate(error, absl::StrCat(name_, ":", line, ":", column));
    }
    const size_t part = path.find_last_of(".[");
    if (part == absl::string_view::npos) return Annotate(error, name_);
    path = path.substr(0, part);
  }
}

}  // namespace fedge
