#include "client/model_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "client/http_download.h"
#include "common/base/logging.h"
#include "tests/client/fake_server.h"
#include "tests/server/temporary_dir.h"
#include "tests/testing/fault_env.h"
#include "tests/testing/tiny_model.h"

namespace fedge {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Answers each connection with the next of its answers, and ends.
class TinyHttpServer {
 public:
  explicit TinyHttpServer(std::vector<std::string> answers) : answers_(std::move(answers)) {
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(fd_, 8), 0);
    socklen_t size = sizeof(address);
    getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] {
      for (const std::string& answer : answers_) {
        const int client = accept(fd_, nullptr, nullptr);
        std::string request;
        char piece[1024];
        while (request.find("\r\n\r\n") == std::string::npos) {
          const ssize_t got = recv(client, piece, sizeof(piece), 0);
          if (got <= 0) break;
          request.append(piece, static_cast<size_t>(got));
        }
        requests.push_back(request);
        send(client, answer.data(), answer.size(), MSG_NOSIGNAL);
        close(client);
      }
    });
  }
  ~TinyHttpServer() {
    Join();
    close(fd_);
  }
  void Join() {
    if (thread_.joinable()) thread_.join();
  }
  std::string Url(const std::string& path) const {
    return absl::StrCat("http://127.0.0.1:", port_, path);
  }
  std::vector<std::string> requests;  // after Join

 private:
  const std::vector<std::string> answers_;
  int fd_ = -1;
  int port_ = 0;
  std::thread thread_;
};

class ModelFileTest : public ::testing::Test {
 protected:
  ModelFileTest() {
    SetLogLevel(LogLevel::kOff);
    model_ = Env::Posix()->ReadFile(testing::WriteTinyModel(dir_.path(), {})).value();
    v1::BaseModelOffer& offer = *server_.answer.mutable_base_model();
    *offer.mutable_content() = server_.Offer(model_);
    offer.set_served(true);
    server_.chunk_bytes = model_.size() / 5;
    options_.folder = dir_.File("models");
    options_.node_id = "alpha";
    options_.on_wait = [this](const absl::Status& why, absl::Duration) {
      waits_.push_back(std::string(why.message()));
    };
  }
  absl::StatusOr<ModelFile> Fetch(Env* env = Env::Posix()) {
    return FetchModelFile(options_, server_, clock_, *env);
  }
  std::string Name() const { return Sha256Of(model_).Hex() + ".gguf"; }
  std::string Held() const {
    return Env::Posix()->ReadFile(JoinPath(options_.folder, Name())).value_or("");
  }

  testing::TemporaryDir dir_;
  std::string model_;
  testing::FakeServer server_;
  ManualClock clock_;
  ModelFetchOptions options_;
  std::vector<std::string> waits_;
};

TEST_F(ModelFileTest, FetchesOnceAndKeepsItWithoutAServer) {
  const auto file = Fetch();
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->base->sha256(), Sha256Of(model_));
  EXPECT_EQ(server_.check_ins[0].base_model_sha256(), "");
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(server_.download_offsets.size(), 1u);
  server_.check_in_errors.assign(5, absl::UnavailableError("away"));
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(server_.download_offsets.size(), 1u);
}

TEST_F(ModelFileTest, GoesOnWhereItBrokeOffAlsoInAnotherProcess) {
  server_.break_downloads_after = {2};
  options_.stopping = [this] { return !waits_.empty(); };  // the process ends at the first failure
  EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kCancelled);
  options_.stopping = nullptr;
  ASSERT_TRUE(Fetch().ok());
  EXPECT_THAT(server_.download_offsets, ElementsAre(0u, 2 * (model_.size() / 5)));
  EXPECT_EQ(Held(), model_);
}

TEST_F(ModelFileTest, WaitsForAServerThatIsAway) {
  server_.check_in_errors.assign(30, absl::UnavailableError("away"));
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(waits_.size(), 30u);
  EXPECT_GT(clock_.Monotonic(), absl::Hours(1));
  EXPECT_LT(clock_.Monotonic(), absl::Hours(8));
}

TEST_F(ModelFileTest, WaitsForAServerThatHasNoRunYet) {
  v1::CheckInResponse no_run;
  no_run.mutable_retry()->set_reason("no run yet");
  server_.first_answers.assign(3, no_run);
  ASSERT_TRUE(Fetch().ok());
  EXPECT_THAT(waits_, ElementsAre("no run yet", "no run yet", "no run yet"));
}

TEST_F(ModelFileTest, ADamagedOrCutOffFileIsFetchedAgain) {
  ASSERT_TRUE(Fetch().ok());
  for (const std::string& damage : {std::string(model_).replace(model_.size() - 9, 1, "\x7f"),
                                    model_.substr(0, model_.size() / 2), std::string()}) {
    ASSERT_TRUE(Env::Posix()->WriteFileAtomic(JoinPath(options_.folder, Name()), damage).ok());
    const auto file = Fetch();
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(Held(), model_);
  }
}

TEST_F(ModelFileTest, RefusesWhatIsNotTheModel) {
  const std::string raw = server_.answer.base_model().content().sha256();
  server_.content[raw][100] ^= 1;
  const absl::Status status = Fetch().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("what it sends is not the model with SHA-256"));
  EXPECT_EQ(server_.download_offsets.size(), 3u);
  EXPECT_EQ(Held(), "");
}

TEST_F(ModelFileTest, SaysWhatToDoWhereTheServerDoesNotGiveItAway) {
  server_.answer.mutable_base_model()->set_served(false);
  EXPECT_THAT(Fetch().status().message(), HasSubstr("give a copy of the file with --model"));
  server_.answer.mutable_finished();
  EXPECT_THAT(Fetch().status().message(), HasSubstr("does not name its base model"));
  const auto missing = OpenModelFile(dir_.File("none.gguf"), *Env::Posix());
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.status().message(), HasSubstr("none.gguf"));
  EXPECT_THAT(missing.status().message(), HasSubstr("copy the server's model there again"));
}

TEST_F(ModelFileTest, ANewModelReplacesTheOldOne) {
  ASSERT_TRUE(Env::Posix()->CreateDirs(options_.folder).ok());
  ASSERT_TRUE(Env::Posix()->WriteFileAtomic(JoinPath(options_.folder, "old.gguf.part"), "x").ok());
  ASSERT_TRUE(Fetch().ok());
  EXPECT_THAT(*Env::Posix()->ListDir(options_.folder), ElementsAre(Name()));
}

// A disk that fails at any operation: waited for, and whole in the end.
TEST_F(ModelFileTest, AFullDiskAtAnyStepIsWaitedFor) {
  for (int64_t n = 1;; ++n) {
    Env::Posix()->Remove(options_.folder).IgnoreError();
    testing::FaultEnv env;
    env.FailFrom(n, absl::StatusCode::kResourceExhausted, testing::FaultEnv::Span::kOnce,
                 testing::FaultEnv::Scope::kWrites);
    absl::StatusOr<ModelFile> file = Fetch(&env);
    if (!file.ok()) file = Fetch(&env);  // the folder itself: the daemon says so and ends
    ASSERT_TRUE(file.ok()) << n << " " << file.status();
    if (!env.triggered()) break;
    ASSERT_LT(n, 100);
  }
}

TEST_F(ModelFileTest, TakesItFromACacheOfTheNetworkAndGoesOnThere) {
  const std::string head = model_.substr(0, 100);
  TinyHttpServer cache(
      {absl::StrCat("HTTP/1.0 200 OK\r\nContent-Length: ", model_.size(), "\r\n\r\n", head),
       absl::StrCat("HTTP/1.1 206 Partial Content\r\nContent-Length: ", model_.size() - 100,
                    "\r\n\r\n", model_.substr(100))});
  options_.url = cache.Url("/models/");
  server_.answer.mutable_base_model()->set_served(false);
  const auto file = Fetch();
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(Held(), model_);
  EXPECT_TRUE(server_.download_offsets.empty());
  cache.Join();
  EXPECT_THAT(cache.requests[0], HasSubstr("GET /models/" + Name() + " HTTP/1.0\r\n"));
  EXPECT_THAT(cache.requests[1], HasSubstr("Range: bytes=100-\r\n"));
  ASSERT_EQ(waits_.size(), 1u);
  EXPECT_THAT(waits_[0], HasSubstr("broke off"));
}

TEST_F(ModelFileTest, ACacheThatKnowsNoRangesIsReadFromTheStart) {
  TinyHttpServer cache({"HTTP/1.0 200 OK\r\n\r\n0123456789"});
  std::string got;
  const absl::Status status =
      HttpDownload(ParseHttpUrl(cache.Url("/x")).value(), 4, [&](absl::string_view bytes) {
        absl::StrAppend(&got, bytes);
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(got, "456789");
}

TEST(HttpDownloadTest, NamesWhatACacheDoesWrong) {
  const auto ignore = [](absl::string_view) { return absl::OkStatus(); };
  const auto answer = [&](const std::string& text) {
    TinyHttpServer cache({text});
    return HttpDownload(ParseHttpUrl(cache.Url("/x")).value(), 0, ignore);
  };
  EXPECT_EQ(answer("HTTP/1.0 404 Not Found\r\n\r\n").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(answer("HTTP/1.0 301 Moved\r\n\r\n").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(answer("SSH-2.0\r\n\r\n").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(answer("HTTP/1.0 200 OK\r\nContent-Length: x\r\n\r\n").code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(answer("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nabc").code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(answer("").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(answer(std::string(40'000, 'h')).code(), absl::StatusCode::kUnavailable);
}

TEST(HttpDownloadTest, ReadsAddresses) {
  const auto url = ParseHttpUrl("http://cache.local:8080/a/b.gguf");
  ASSERT_TRUE(url.ok()) << url.status();
  EXPECT_EQ(url->host, "cache.local");
  EXPECT_EQ(url->port, "8080");
  EXPECT_EQ(url->path, "/a/b.gguf");
  EXPECT_EQ(ParseHttpUrl("http://h/")->port, "80");
  for (const char* const wrong : {"", "https://h/x", "http://h", "http:///x", "http://h:0/x",
                                  "http://h:x/x", "http://h/a b", "http://h/a\r\nHost: b"}) {
    EXPECT_EQ(ParseHttpUrl(wrong).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
}

}  // namespace
}  // namespace fedge
