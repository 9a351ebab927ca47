// The parts of a RunPlan that say how updates and versions are encoded.
#ifndef FEDGE_SERVER_CODEC_PLAN_H_
#define FEDGE_SERVER_CODEC_PLAN_H_

#include "server/config_limits.h"

namespace fedge {

namespace v1 {
class CodecConfig;
class DownlinkConfig;
}  // namespace v1

struct RunPlan;

// Checks `codec` and fills it in. The round's deadline is in the plan already.
void FillCodec(const v1::CodecConfig& codec, Limits& limits, RunPlan& plan);
void FillDownlink(const v1::DownlinkConfig& downlink, Limits& limits, RunPlan& plan);

}  // namespace fedge

#endif  // FEDGE_SERVER_CODEC_PLAN_H_
