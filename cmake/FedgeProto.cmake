# Generates C++ from proto/**/*.proto into the build tree. The messages and the gRPC stubs are two
# libraries, so that only *service.cc and grpc_*.cc pay for the gRPC headers.
find_package(Protobuf REQUIRED)
find_package(gRPC REQUIRED)
find_program(FEDGE_GRPC_PLUGIN grpc_cpp_plugin REQUIRED)

function(fedge_proto_library name)
  cmake_parse_arguments(ARG "" "" "PROTOS;SERVICES" ${ARGN})
  set(out ${CMAKE_BINARY_DIR}/proto)
  file(MAKE_DIRECTORY ${out})
  set(pb_sources)
  foreach(proto ${ARG_PROTOS})
    string(REGEX REPLACE "\\.proto$" "" stem ${proto})
    add_custom_command(
      OUTPUT ${out}/${stem}.pb.cc ${out}/${stem}.pb.h
      COMMAND protobuf::protoc -I ${CMAKE_SOURCE_DIR}/proto --cpp_out=${out}
              ${CMAKE_SOURCE_DIR}/proto/${proto}
      DEPENDS ${CMAKE_SOURCE_DIR}/proto/${proto})
    list(APPEND pb_sources ${out}/${stem}.pb.cc)
  endforeach()
  add_library(${name} STATIC ${pb_sources})
  target_include_directories(${name} SYSTEM PUBLIC ${out})
  target_link_libraries(${name} PUBLIC protobuf::libprotobuf)

  set(grpc_sources)
  foreach(proto ${ARG_SERVICES})
    string(REGEX REPLACE "\\.proto$" "" stem ${proto})
    add_custom_command(
      OUTPUT ${out}/${stem}.grpc.pb.cc ${out}/${stem}.grpc.pb.h
      COMMAND protobuf::protoc -I ${CMAKE_SOURCE_DIR}/proto --grpc_out=generate_mock_code=true:${out}
              --plugin=protoc-gen-grpc=${FEDGE_GRPC_PLUGIN} ${CMAKE_SOURCE_DIR}/proto/${proto}
      DEPENDS ${CMAKE_SOURCE_DIR}/proto/${proto})
    list(APPEND grpc_sources ${out}/${stem}.grpc.pb.cc)
  endforeach()
  add_library(${name}_grpc STATIC ${grpc_sources})
  target_link_libraries(${name}_grpc PUBLIC ${name} gRPC::grpc++)
endfunction()
