#include "server/holdout_evaluator.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/model/chat_template.h"
#include "common/training/evaluation.h"
#include "server/federation_core.h"

namespace fedge {
namespace {

// Between these many examples a stop is noticed.
constexpr size_t kExamplesAtOnce = 16;

}  // namespace

HoldoutEvaluator::HoldoutEvaluator(std::shared_ptr<const BaseModel> model,
                                   std::vector<Example> examples, int threads)
    : examples_(std::move(examples)), pool_(threads), transformer_(std::move(model), &pool_) {}

absl::StatusOr<std::unique_ptr<HoldoutEvaluator>> HoldoutEvaluator::Create(
    std::shared_ptr<const BaseModel> model, absl::string_view path, int64_t max_length, int threads,
    Env& env) {
  ASSIGN_OR_RETURN(const ChatFormat format,
                   RecognizeChatTemplate(model->tokenizer().chat_template()));
  ASSIGN_OR_RETURN(const std::vector<Record> records,
                   ReadRecords(path, format, DatasetLimits(), env));
  std::vector<Example> examples;
  int64_t targets = 0;
  for (const Record& record : records) {
    for (Example& example : MakeExamples(record, model->tokenizer(), max_length)) {
      targets += example.num_targets;
      examples.push_back(std::move(example));
    }
  }
  if (targets == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": holdout: no token to score in ", records.size(), " records"));
  }
  return std::unique_ptr<HoldoutEvaluator>(
      new HoldoutEvaluator(std::move(model), std::move(examples), threads));
}

HoldoutEvaluator::~HoldoutEvaluator() { Stop(); }

void HoldoutEvaluator::Start(FederationCore& core) {
  FEDGE_CHECK(!worker_.joinable());
  {
    absl::MutexLock lock(&mutex_);
    if (!waiting_) waiting_.emplace(core.version(), core.served());
  }
  worker_ = std::thread([this, &core] { Work(core); });
}

void HoldoutEvaluator::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (worker_.joinable()) worker_.join();
}

bool HoldoutEvaluator::stopping() {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

void HoldoutEvaluator::OnPublished(const VersionRecord& version, const LoraAdapter& adapter) {
  absl::MutexLock lock(&mutex_);
  waiting_.emplace(version.version, adapter);
}

void HoldoutEvaluator::WaitUntilIdle() {
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || (!busy_ && !waiting_);
  };
  absl::MutexLock lock(&mutex_, absl::Condition(&idle));
}

std::optional<LossSum> HoldoutEvaluator::Evaluate(const LoraAdapter& adapter) {
  LossSum sum;
  for (size_t i = 0; i < examples_.size(); i += kExamplesAtOnce) {
    if (stopping()) return std::nullopt;
    const size_t count = std::min(kExamplesAtOnce, examples_.size() - i);
    sum += EvaluateLoss(transformer_, &adapter, absl::MakeConstSpan(examples_).subspan(i, count));
  }
  return sum;
}

void HoldoutEvaluator::Work(FederationCore& core) {
  for (;;) {
    std::optional<std::pair<uint64_t, LoraAdapter>> task;
    {
      const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || waiting_;
      };
      absl::MutexLock lock(&mutex_, absl::Condition(&ready));
      if (stopping_) return;
      task = std::exchange(waiting_, std::nullopt);
      busy_ = true;
    }
    if (const std::optional<LossSum> sum = Evaluate(task->second)) {
      core.RecordHoldout(task->first, sum->mean(), sum->num_tokens);
    }
    absl::MutexLock lock(&mutex_);
    busy_ = false;
  }
}

}  // namespace fedge
