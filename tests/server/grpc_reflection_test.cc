// What a general gRPC client asks a server first: which services are there? The request and the
// answer are read as bytes, as Debian ships no generated code of the reflection service.
#include <grpcpp/channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <string>

#include "server/grpc_server.h"
#include "tests/server/federation_test_rig.h"

namespace fedge {
namespace {

// ServerReflectionRequest{list_services: "*"}: field 7, length 1.
constexpr char kListServices[] = "\x3a\x01*";

TEST(GrpcReflectionTest, NamesTheFederationService) {
  testing::FederationRig rig;
  const auto server = GrpcServer::Start(*rig.core, {.listen = ""});
  ASSERT_TRUE(server.ok()) << server.status();
  grpc::GenericStub stub((*server)->InProcessChannel());
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  call->StartCall(nullptr);
  ASSERT_TRUE(wait());
  const grpc::Slice question(kListServices);
  call->WriteLast(grpc::ByteBuffer(&question, 1), grpc::WriteOptions(), nullptr);
  ASSERT_TRUE(wait());
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  ASSERT_TRUE(wait());
  grpc::Slice bytes;
  ASSERT_TRUE(answer.DumpToSingleSlice(&bytes).ok());
  const std::string text(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  EXPECT_NE(text.find("fedge.v1.FederationService"), std::string::npos);
  EXPECT_NE(text.find("grpc.health.v1.Health"), std::string::npos);
  grpc::Status status;
  call->Finish(&status, nullptr);
  ASSERT_TRUE(wait());
  EXPECT_TRUE(status.ok()) << status.error_message();
}

}  // namespace
}  // namespace fedge
