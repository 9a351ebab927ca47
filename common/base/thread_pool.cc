#include "common/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/base/status.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fedge {
namespace {

// Longer than the serial code between two loops, shorter than anyone would notice.
constexpr std::chrono::microseconds kSpinTime(40);
constexpr int kPausesPerLook = 16;
// Indices of one pass through the ticket.
constexpr int64_t kMaxCount = 0xffff;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Until ready() or for a while; whether it is ready.
template <class Ready>
bool Spin(const Ready& ready) {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (ready()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() - start < kSpinTime);
  return false;
}

// The loop's number in the high half; in the low half how many indices are left, and the first of
// them: they are taken at both ends.
uint64_t MakeTicket(uint32_t generation, uint32_t left) {
  return uint64_t{generation} << 32 | uint64_t{left} << 16;
}
uint32_t GenerationOf(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }
uint32_t LeftOf(uint64_t ticket) { return static_cast<uint32_t>(ticket) >> 16; }
uint32_t FirstOf(uint64_t ticket) { return static_cast<uint32_t>(ticket) & 0xffffu; }

// The end at which this thread takes indices. Half of the threads take the high ones: the next loop
// over the same rows then finds most of them in the caches of the processor that wrote them.
thread_local bool takes_last = false;

}  // namespace

ThreadPool::ThreadPool(int threads) {
  FEDGE_CHECK(threads >= 1, "threads ", threads);
  // Spinning helps only while the others run.
  spin_ = threads <= AvailableProcessors();
  workers_.reserve(static_cast<size_t>(threads) - 1);
  for (int i = 1; i < threads; ++i) {
    workers_.emplace_back([this, i] {
      takes_last = i % 2 == 1;
      Work();
    });
  }
}

ThreadPool::~ThreadPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_.store(true);
    wake_.SignalAll();
  }
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunShare(uint32_t generation) {
  uint64_t ticket = ticket_.load();
  while (GenerationOf(ticket) == generation) {
    const Function* const fn = fn_.load();
    const uint32_t count = count_.load();
    const uint32_t left = LeftOf(ticket);
    if (left == 0) return;
    const uint32_t index = FirstOf(ticket) + (takes_last ? left - 1 : 0);
    const uint64_t one_less = ticket - (uint64_t{1} << 16) + (takes_last ? 0 : 1);
    if (!ticket_.compare_exchange_weak(ticket, one_less)) continue;
    RunIndex(*fn, index);
    if (done_.fetch_add(1) + 1 == count && caller_sleeps_.load()) {
      absl::MutexLock lock(&mutex_);
      finished_.Signal();
    }
    ticket = ticket_.load();
  }
}

void ThreadPool::ParallelFor(int64_t count, const Function& fn) {
  if (workers_.empty() || count <= 1) {
    for (int64_t i = 0; i < count; ++i) RunIndex(fn, i);
    return;
  }
  if (count <= kMaxCount) return RunLoop(count, fn);
  for (int64_t begin = 0; begin < count; begin += kMaxCount) {
    RunLoop(std::min(kMaxCount, count - begin), [&](int64_t i) { fn(begin + i); });
  }
}

void ThreadPool::RunLoop(int64_t count, const Function& fn) {
  // First a loop without indices: a late worker that has read the old ticket and reads the new
  // count must not take what looks like an index between the two.
  const uint32_t generation = GenerationOf(ticket_.load()) + 2;
  ticket_.store(MakeTicket(generation - 1, 0));
  fn_.store(&fn);
  count_.store(static_cast<uint32_t>(count));
  done_.store(0);
  ticket_.store(MakeTicket(generation, static_cast<uint32_t>(count)));
  if (sleepers_.load() > 0) {
    absl::MutexLock lock(&mutex_);
    wake_.SignalAll();
  }
  const bool own_end = std::exchange(takes_last, false);  // a worker of another pool may call
  RunShare(generation);
  takes_last = own_end;
  AwaitDone(static_cast<uint32_t>(count));
}

void ThreadPool::AwaitDone(uint32_t count) {
  const auto done = [&] { return done_.load() == count; };
  if (done() || (spin_ && Spin(done))) return;
  absl::MutexLock lock(&mutex_);
  caller_sleeps_.store(true);
  while (!done()) finished_.Wait(&mutex_);
  caller_sleeps_.store(false);
}

bool ThreadPool::AwaitLoop(uint32_t seen, uint32_t& generation) {
  const auto ready = [&] {
    generation = GenerationOf(ticket_.load());
    return generation != seen || stopping_.load();
  };
  if (!(spin_ && Spin(ready)) && !ready()) {
    absl::MutexLock lock(&mutex_);
    sleepers_.fetch_add(1);
    while (!ready()) wake_.Wait(&mutex_);
    sleepers_.fetch_sub(1);
  }
  return !stopping_.load();
}

void ThreadPool::Work() {
  uint32_t generation = 0;
  while (AwaitLoop(generation, generation)) RunShare(generation);
}

int ThreadPool::AvailableProcessors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace fedge
