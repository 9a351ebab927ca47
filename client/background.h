// The daemon's manners: everybody else on the device comes first.
#ifndef FEDGE_CLIENT_BACKGROUND_H_
#define FEDGE_CLIENT_BACKGROUND_H_

namespace fedge {

// For this thread and those it starts: low priority for the processor, the lowest for the disk; for
// the process: the first to go when memory runs out. What the system refuses is left as it is.
void RunInBackground();

}  // namespace fedge

#endif  // FEDGE_CLIENT_BACKGROUND_H_
