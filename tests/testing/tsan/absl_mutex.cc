// Tells ThreadSanitizer what Debian's Abseil, which is not built with it, does: its locks are
// futexes, of which the sanitizer sees nothing, and everything behind an absl::Mutex would look
// like a race. Linked into test programs of the `tsan` preset only, where these functions stand
// before the shared library's, for libraries (gRPC) too.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdlib>

#include "absl/base/config.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

extern "C" {

void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);

// What libraries do to memory by themselves, without it, looks like races too.
const char* __tsan_default_options() { return "ignore_noninstrumented_modules=1"; }

// gRPC hands a call from the thread that asks for something to the one that hears of its end, and
// frees it on a third, by means that are in its library. So what the callbacks of a call share with
// one another is not looked at; what they share through our locks and queues is with others.
const char* __tsan_default_suppressions() {
  return "race:grpc::internal::CallbackWithSuccessTag::Run\n"
         "race:grpc::internal::CallbackWithSuccessTag::Clear\n"
         "race:grpc::internal::CallbackWithSuccessTag::~CallbackWithSuccessTag\n"
         "race:grpc::internal::CallOpServerSendStatus::~CallOpServerSendStatus\n"
         "race:grpc::internal::InterceptorBatchMethodsImpl::~InterceptorBatchMethodsImpl\n"
         "race:ServerCallbackUnaryImpl::~ServerCallbackUnaryImpl\n"
         "race:ServerCallbackReaderImpl::~ServerCallbackReaderImpl\n"
         "race:ServerCallbackWriterImpl::~ServerCallbackWriterImpl\n"
         "race:ServerCallbackReaderWriterImpl::~ServerCallbackReaderWriterImpl\n"
         "race:grpc::ServerUnaryReactor::~ServerUnaryReactor\n"
         "race_top:grpc::internal::\n";
}

}  // extern "C"

namespace {

// The library's function of this mangled name, less "_ZN4absl" and the inline namespace.
template <typename Function>
Function* Real(const char* name) {
  void* const found = dlsym(RTLD_NEXT, name);
  if (found == nullptr) std::abort();
  return reinterpret_cast<Function*>(found);
}

// The library's functions call one another: the outermost speaks.
thread_local bool speaking = false;

class Outermost {
 public:
  Outermost() : is_(!speaking) { speaking = true; }
  ~Outermost() {
    if (is_) speaking = false;
  }
  operator bool() const { return is_; }

 private:
  const bool is_;
};

// What follows, until the end of the block, waits for `mutex` and has it then. What the library
// reads meanwhile, conditions of other waiters among it, is read under the lock.
class Locking {
 public:
  explicit Locking(absl::Mutex* mutex, unsigned kind = 0) : mutex_(mutex), kind_(kind) {
    if (outermost_) __tsan_mutex_pre_lock(mutex_, kind_);
  }
  ~Locking() {
    const unsigned failed = failed_ ? __tsan_mutex_try_lock_failed : 0;
    if (outermost_) __tsan_mutex_post_lock(mutex_, kind_ | failed, 0);
  }
  bool Result(bool locked) {
    failed_ = !locked;
    return locked;
  }

 private:
  const Outermost outermost_;
  absl::Mutex* const mutex_;
  const unsigned kind_;
  bool failed_ = false;
};

class Unlocking {
 public:
  explicit Unlocking(absl::Mutex* mutex, unsigned kind = 0) : mutex_(mutex), kind_(kind) {
    if (outermost_) __tsan_mutex_pre_unlock(mutex_, kind_);
  }
  ~Unlocking() {
    if (outermost_) __tsan_mutex_post_unlock(mutex_, kind_);
  }

 private:
  const Outermost outermost_;
  absl::Mutex* const mutex_;
  const unsigned kind_;
};

// Gives `mutex` up and has it again at the end of the block, as waiting for a condition does.
class Waiting {
 public:
  explicit Waiting(absl::Mutex* mutex) : given_up_(mutex), locking_(mutex) {}

 private:
  struct GivenUp {
    explicit GivenUp(absl::Mutex* mutex) { const Unlocking now(mutex); }
  };
  const GivenUp given_up_;
  const Locking locking_;
};

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

#define FEDGE_STRING(x) #x
#define FEDGE_TEXT(x) FEDGE_STRING(x)
#define FEDGE_LENGTH 7  // of "debian3"
#define FEDGE_REAL(type, rest)                                             \
  static auto* const real = Real<type>("_ZN4absl" FEDGE_TEXT(FEDGE_LENGTH) \
                                           FEDGE_TEXT(ABSL_OPTION_INLINE_NAMESPACE_NAME) rest)

Mutex::~Mutex() {
  FEDGE_REAL(void(Mutex*), "5MutexD1Ev");
  real(this);
  // Counts of references in libraries, of which it sees nothing, say who is the last.
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  __tsan_mutex_destroy(this, 0);
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
}

void Mutex::Lock() {
  FEDGE_REAL(void(Mutex*), "5Mutex4LockEv");
  const Locking locking(this);
  real(this);
}

void Mutex::Unlock() {
  FEDGE_REAL(void(Mutex*), "5Mutex6UnlockEv");
  const Unlocking unlocking(this);
  real(this);
}

bool Mutex::TryLock() {
  FEDGE_REAL(bool(Mutex*), "5Mutex7TryLockEv");
  Locking locking(this, __tsan_mutex_try_lock);
  return locking.Result(real(this));
}

void Mutex::ReaderLock() {
  FEDGE_REAL(void(Mutex*), "5Mutex10ReaderLockEv");
  const Locking locking(this, __tsan_mutex_read_lock);
  real(this);
}

void Mutex::ReaderUnlock() {
  FEDGE_REAL(void(Mutex*), "5Mutex12ReaderUnlockEv");
  const Unlocking unlocking(this, __tsan_mutex_read_lock);
  real(this);
}

void Mutex::LockWhen(const Condition& condition) {
  FEDGE_REAL(void(Mutex*, const Condition&), "5Mutex8LockWhenERKNS0_9ConditionE");
  const Locking locking(this);
  real(this, condition);
}

void Mutex::Await(const Condition& condition) {
  FEDGE_REAL(void(Mutex*, const Condition&), "5Mutex5AwaitERKNS0_9ConditionE");
  const Waiting waiting(this);
  real(this, condition);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  FEDGE_REAL(bool(Mutex*, const Condition&, Duration),
             "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  const Waiting waiting(this);
  return real(this, condition, timeout);
}

bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  FEDGE_REAL(bool(Mutex*, const Condition&, Duration),
             "5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  const Locking locking(this);
  return real(this, condition, timeout);
}

void CondVar::Wait(Mutex* mutex) {
  FEDGE_REAL(void(CondVar*, Mutex*), "7CondVar4WaitEPNS0_5MutexE");
  const Waiting waiting(mutex);
  real(this, mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  FEDGE_REAL(bool(CondVar*, Mutex*, Duration),
             "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  const Waiting waiting(mutex);
  return real(this, mutex, timeout);
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  FEDGE_REAL(bool(CondVar*, Mutex*, Time), "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  const Waiting waiting(mutex);
  return real(this, mutex, deadline);
}

// Its HasBeenNotified reads an atomic that only the library writes.
void Notification::Notify() {
  FEDGE_REAL(void(Notification*), "12Notification6NotifyEv");
  __tsan_release(this);
  real(this);
}

ABSL_NAMESPACE_END
}  // namespace absl
