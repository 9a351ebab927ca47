// The base model of a device: a file of its owner's, or one that is fetched once into the state
// folder, under its SHA-256.
#ifndef FEDGE_CLIENT_MODEL_FILE_H_
#define FEDGE_CLIENT_MODEL_FILE_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/federation_link.h"
#include "common/base/clock.h"
#include "common/base/env.h"
#include "common/model/base_model.h"

namespace fedge {

struct ModelFile {
  std::string path;
  std::shared_ptr<const BaseModel> base;
};

// The owner's file. Errors name it and the remedy: NotFound, InvalidArgument (no GGUF, or cut off).
absl::StatusOr<ModelFile> OpenModelFile(const std::string& path, Env& env);

struct ModelFetchOptions {
  std::string folder;                      // of fetched models
  std::string url;                         // http://...; empty: from the server
  std::string node_id;                     // for the server
  uint64_t seed = 0;                       // of jitter
  std::function<bool()> stopping;          // may be empty
  std::function<bool()> await_permission;  // may be empty; false: stopping
  std::function<void(const absl::Status&, absl::Duration)> on_wait;  // may be empty: each failure
};

// The model the server's run trains, from the folder or fetched into it. What was there before goes
// on where it broke off, over restarts; a file that is not what its name says is removed and
// fetched again; other models are removed. Without a server a whole model of before is taken.
// Failures that may pass are waited for (5 s doubling to 10 minutes, with jitter), also a full
// disk. Cancelled: stopping. FailedPrecondition, InvalidArgument: the server does not give its
// model away or nobody has it; give the file. DataLoss: the source has other content.
absl::StatusOr<ModelFile> FetchModelFile(const ModelFetchOptions& options, FederationLink& link,
                                         Clock& clock, Env& env);

}  // namespace fedge

#endif  // FEDGE_CLIENT_MODEL_FILE_H_
