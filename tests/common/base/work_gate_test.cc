#include "common/base/work_gate.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "common/base/thread_pool.h"

namespace fedge {
namespace {

TEST(WorkGateTest, AHeldPoolGoesOnWhenItIsOpened) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    WorkGate gate;
    pool.set_gate(&gate);
    std::atomic<int> done{0};
    std::atomic<bool> held{false};
    std::thread opener([&] {
      while (!held) std::this_thread::yield();
      EXPECT_LT(done, 100);
      gate.Open();
    });
    pool.ParallelFor(100, [&](int64_t i) {
      if (i == 50) {
        gate.Hold();
        held = true;
      }
      ++done;
    });
    opener.join();
    EXPECT_EQ(done, 100);
    EXPECT_GT(gate.held_time(), absl::ZeroDuration());
    EXPECT_EQ(gate.held_time(), gate.held_time());
  }
}

TEST(WorkGateTest, AClosedGateLeavesWorkOutForEver) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    WorkGate gate;
    pool.set_gate(&gate);
    gate.Hold();
    std::thread closer([&] { gate.Close(); });
    std::atomic<int> done{0};
    pool.ParallelFor(100, [&](int64_t) { ++done; });
    closer.join();
    EXPECT_EQ(done, 0);
    gate.Open();
    EXPECT_TRUE(gate.closed());
    pool.set_gate(nullptr);
    pool.ParallelFor(100, [&](int64_t) { ++done; });
    EXPECT_EQ(done, 100);
  }
}

}  // namespace
}  // namespace fedge
