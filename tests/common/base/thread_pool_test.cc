#include "common/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"

namespace fedge {
namespace {

TEST(ThreadPoolTest, CallsEachIndexOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t count : {0, 1, 2, 7, 1000, 65535, 65536, 140000}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
      pool.ParallelFor(count, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
      for (const auto& call : calls) ASSERT_EQ(call.load(), 1);
    }
  }
}

// Many short calls in a row: a worker that is late for one call must neither run an index of the
// next one twice nor keep the caller waiting for ever.
TEST(ThreadPoolTest, SurvivesManyShortCalls) {
  ThreadPool pool(4);
  int64_t expected = 0;
  std::atomic<int64_t> sum{0};
  for (int64_t call = 0; call < 20000; ++call) {
    const int64_t count = call % 6;
    pool.ParallelFor(count, [&](int64_t i) { sum += i + 1; });
    expected += count * (count + 1) / 2;
    ASSERT_EQ(sum.load(), expected) << call;
  }
}

TEST(ThreadPoolTest, GivesTheSameResultForAnyNumberOfThreads) {
  std::vector<double> expected;
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    std::vector<double> out(333);
    pool.ParallelFor(333, [&](int64_t i) {
      double value = 0;
      for (int64_t j = 1; j <= i; ++j) value += 1.0 / static_cast<double>(j);
      out[static_cast<size_t>(i)] = value;
    });
    if (expected.empty()) expected = out;
    EXPECT_EQ(out, expected) << threads;
  }
}

TEST(ThreadPoolTest, OneThreadRunsInline) {
  ThreadPool pool(1);
  std::set<std::thread::id> seen;
  pool.ParallelFor(50, [&](int64_t) { seen.insert(std::this_thread::get_id()); });
  EXPECT_EQ(seen, std::set<std::thread::id>{std::this_thread::get_id()});
}

TEST(ThreadPoolTest, ReallyRunsOnSeveralThreads) {
  ThreadPool pool(3);
  absl::Mutex mutex;
  std::set<std::thread::id> seen;
  // Each index waits for the other two: the call only ends if three threads run it.
  pool.ParallelFor(3, [&](int64_t) {
    absl::MutexLock lock(&mutex);
    seen.insert(std::this_thread::get_id());
    mutex.Await(absl::Condition(
        +[](std::set<std::thread::id>* ids) { return ids->size() == 3; }, &seen));
  });
  EXPECT_EQ(seen.size(), 3u);
}

TEST(ThreadPoolTest, StopsWithoutHavingWorked) {
  for (int i = 0; i < 200; ++i) ThreadPool pool(4);
  EXPECT_GE(ThreadPool::AvailableProcessors(), 1);
}

}  // namespace
}  // namespace fedge
