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
// Of the candidate, the version it would follow, and one more: a refused candidate's.
constexpr size_t kRememberedMeasurements = 3;

}  // namespace

HoldoutEvaluator::HoldoutEvaluator(std::shared_ptr<const BaseModel> model,
                                   std::vector<Slice> slices, int threads)
    : slices_(std::move(slices)), pool_(threads), transformer_(std::move(model), &pool_) {}

absl::StatusOr<std::unique_ptr<HoldoutEvaluator>> HoldoutEvaluator::Create(
    std::shared_ptr<const BaseModel> model, absl::string_view path, int64_t max_length,
    SliceBy slice_by, int threads, Env& env) {
  ASSIGN_OR_RETURN(const ChatFormat format,
                   RecognizeChatTemplate(model->tokenizer().chat_template()));
  ASSIGN_OR_RETURN(const std::vector<Record> records,
                   ReadRecords(path, format, DatasetLimits(), env));
  std::map<std::string, std::vector<Example>> parts;
  int64_t targets = 0;
  for (const Record& record : records) {
    std::vector<Example>& part = parts[SliceName(record, slice_by)];
    for (Example& example : MakeExamples(record, model->tokenizer(), max_length)) {
      targets += example.num_targets;
      part.push_back(std::move(example));
    }
  }
  if (targets == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": holdout: no token to score in ", records.size(), " records"));
  }
  if (parts.size() > kMaxSlices) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": holdout: ", parts.size(),
                                                      " slices, at most ", kMaxSlices,
                                                      "; run.gate.slices says what names them"));
  }
  std::vector<Slice> slices;
  for (auto& [name, examples] : parts) slices.push_back({name, std::move(examples)});
  return std::unique_ptr<HoldoutEvaluator>(
      new HoldoutEvaluator(std::move(model), std::move(slices), threads));
}

std::vector<std::string> HoldoutEvaluator::slices() const {
  std::vector<std::string> names;
  for (const Slice& slice : slices_) {
    if (!slice.name.empty()) names.push_back(slice.name);
  }
  return names;
}

HoldoutEvaluator::~HoldoutEvaluator() { Stop(); }

void HoldoutEvaluator::Start(FederationCore& core) {
  FEDGE_CHECK(!worker_.joinable());
  {
    absl::MutexLock lock(&mutex_);
    if (!published_) published_ = Job{core.version(), core.served(), {}};
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
  if (version.holdout_loss) return;  // it was measured as a candidate
  absl::MutexLock lock(&mutex_);
  published_ = Job{version.version, adapter, {}};
}

void HoldoutEvaluator::Evaluate(CandidateTask task) {
  absl::MutexLock lock(&mutex_);
  candidate_ = Job{0, {}, std::move(task)};
}

void HoldoutEvaluator::WaitUntilIdle() {
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || (!busy_ && !published_ && !candidate_);
  };
  absl::MutexLock lock(&mutex_, absl::Condition(&idle));
}

std::optional<Measurement> HoldoutEvaluator::MeasureAnew(const LoraAdapter* adapter) {
  Measurement measured;
  for (const Slice& slice : slices_) {
    LossSum sum;
    const absl::Span<const Example> examples = absl::MakeConstSpan(slice.examples);
    for (size_t i = 0; i < examples.size(); i += kExamplesAtOnce) {
      if (stopping()) return std::nullopt;
      sum += EvaluateLoss(transformer_, adapter, examples.subspan(i, kExamplesAtOnce));
    }
    measured.total += sum;
    if (!slice.name.empty()) measured.slices[slice.name] = sum;
  }
  return measured;
}

std::optional<Measurement> HoldoutEvaluator::Measure(const LoraAdapter* adapter) {
  Digest digest;  // zeros: the base model
  if (adapter != nullptr) {
    const absl::Span<const float> values = adapter->values();
    digest = Sha256Of(absl::string_view(reinterpret_cast<const char*>(values.data()),
                                        values.size() * sizeof(float)));
  }
  const auto known = measured_.find(digest);
  if (known != measured_.end()) return known->second;
  std::optional<Measurement> measured = MeasureAnew(adapter);
  if (!measured) return measured;
  measured_.emplace(digest, *measured);
  if (adapter == nullptr) return measured;
  order_.push_back(digest);
  if (order_.size() > kRememberedMeasurements) {
    measured_.erase(order_.front());
    order_.erase(order_.begin());
  }
  return measured;
}

void HoldoutEvaluator::Do(const Job& job, FederationCore& core) {
  if (job.published) {
    if (const std::optional<Measurement> measured = Measure(&*job.published)) {
      core.RecordHoldout(job.version, measured->total.mean(), measured->total.num_tokens);
    }
    return;
  }
  const std::optional<Measurement> base = Measure(nullptr);
  const std::optional<Measurement> current = Measure(&job.candidate->current->adapter());
  const std::optional<Measurement> candidate = Measure(&job.candidate->candidate->adapter());
  if (base && current && candidate) {
    core.NoteHoldout(job.candidate->round, {*base, *current, *candidate});
  }
}

void HoldoutEvaluator::Work(FederationCore& core) {
  for (;;) {
    std::optional<Job> job;
    {
      const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || published_ || candidate_;
      };
      absl::MutexLock lock(&mutex_, absl::Condition(&ready));
      if (stopping_) return;
      job = std::exchange(candidate_ ? candidate_ : published_, std::nullopt);  // runs wait for it
      busy_ = true;
    }
    Do(*job, core);
    absl::MutexLock lock(&mutex_);
    busy_ = false;
  }
}

}  // namespace fedge
