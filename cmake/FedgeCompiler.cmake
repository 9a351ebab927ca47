# Compiler settings of our own targets: C++20, warnings as errors, ccache, sanitizers.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O2")  # no -DNDEBUG: FEDGE_CHECK stays on either way

find_program(FEDGE_CCACHE ccache)
if(FEDGE_CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${FEDGE_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${FEDGE_CCACHE})
endif()

add_library(fedge_options INTERFACE)
target_include_directories(fedge_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(fedge_options INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wnon-virtual-dtor -Werror)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(fedge_options INTERFACE -Wthread-safety)
endif()
# The result of a sum must not depend on what the compiler contracts in which build; kernels ask for
# fused multiply-add explicitly through Highway.
target_compile_options(fedge_options INTERFACE -ffp-contract=off)

# On ARM, NEON alone and always, which Highway does when it believes that it cannot ask the processor:
# the kernels keep vectors in arrays, which those of SVE, of unknown length, cannot be, and with a
# choice Highway counts AES as part of NEON, which a Raspberry Pi 4 lacks.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  target_compile_definitions(fedge_options INTERFACE TOOLCHAIN_MISS_SYS_AUXV_H)
endif()

if(FEDGE_SANITIZE)
  add_compile_options(-fsanitize=${FEDGE_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${FEDGE_SANITIZE})
endif()
