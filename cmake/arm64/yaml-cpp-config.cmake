# Debian's libyaml-cpp-dev exists for one architecture at a time: the headers are those of the
# machine that builds, the library is the target's libyaml-cpp0.7.
if(NOT TARGET yaml-cpp)
  add_library(yaml-cpp SHARED IMPORTED)
  set_target_properties(yaml-cpp PROPERTIES
    IMPORTED_LOCATION /usr/lib/aarch64-linux-gnu/libyaml-cpp.so.0.7)
endif()
