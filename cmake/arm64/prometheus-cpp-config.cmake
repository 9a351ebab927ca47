# Debian's prometheus-cpp-dev needs a program (civetweb) that exists for one architecture at a time: the headers are those
# of the machine that builds, the libraries are the target's libprometheus-cpp-pull1.0.
if(NOT TARGET prometheus-cpp::pull)
  foreach(part core pull)
    add_library(prometheus-cpp::${part} SHARED IMPORTED)
    set_target_properties(prometheus-cpp::${part} PROPERTIES
      IMPORTED_LOCATION /usr/lib/aarch64-linux-gnu/libprometheus-cpp-${part}.so.1.0)
  endforeach()
  target_link_libraries(prometheus-cpp::pull INTERFACE prometheus-cpp::core)
endif()
