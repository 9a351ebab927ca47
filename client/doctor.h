// `fedge-client doctor`: is everything there that this device needs to take part, and what to do
// about what is not.
#ifndef FEDGE_CLIENT_DOCTOR_H_
#define FEDGE_CLIENT_DOCTOR_H_

#include <string>
#include <vector>

#include "client/client_settings.h"
#include "client/device_probe.h"
#include "client/federation_link.h"
#include "client/node_identity.h"
#include "common/base/clock.h"
#include "common/base/env.h"

namespace fedge {

// The exit code of the program is that of the first finding that is not good.
enum class Check {
  kState = 10,   // the state folder can be written
  kDisk = 11,    // and has room
  kMemory = 12,  // for the model and its training
  kClock = 13,
  kDns = 14,
  kServer = 15,  // answers, and knows this protocol
  kModel = 16,   // is there, whole, and the server's
  kData = 17,    // can be read
  kPolicy = 18,  // allows work now
  kTls = 19,     // server and device know each other, by certificates that are in time
};

struct Finding {
  Check check;
  std::string name;  // "disk"
  bool good = false;
  std::string detail;  // what was found
  std::string remedy;  // what to do; empty when good
};

struct DoctorParts {
  FederationLink* link = nullptr;
  const NodeIdentity* identity = nullptr;  // null: --insecure
  DeviceProbe* probe = nullptr;
  Clock* clock = nullptr;
  Env* env = nullptr;
};

// All checks, from the device outwards; one that depends on a failed one says so.
std::vector<Finding> Examine(const ClientSettings& settings, const DoctorParts& parts);

}  // namespace fedge

#endif  // FEDGE_CLIENT_DOCTOR_H_
