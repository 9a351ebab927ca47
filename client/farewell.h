// A device's last words to its server when its owner makes it leave the run.
#ifndef FEDGE_CLIENT_FAREWELL_H_
#define FEDGE_CLIENT_FAREWELL_H_

#include <string>
#include <vector>

#include "client/federation_link.h"
#include "client/participant_state.h"
#include "common/base/clock.h"

namespace fedge {

// Brings the finished update that waits in `outbox`, if there is one; says of an interrupted
// training that it will not end, so that its round does not wait. One try each. Returns what was
// done or failed, a line each.
std::vector<std::string> SayFarewell(const std::string& node_id, StateStore& outbox,
                                     StateStore& checkpoints, FederationLink& link, Clock& clock);

}  // namespace fedge

#endif  // FEDGE_CLIENT_FAREWELL_H_
