# The functions that every CMakeLists.txt of this project uses, and the warnings of first-party code.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo)
endif()
# Cached objects are shared between clones: paths are relative to the clone, in what is hashed and in debug information.
find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
add_compile_options(-fdebug-prefix-map=${PROJECT_SOURCE_DIR}=.)

add_library(assay_warnings INTERFACE)
target_compile_options(assay_warnings INTERFACE -Wall -Wextra -Wno-missing-field-initializers)
# Errors only where CI builds: another compiler's new warnings must not stop a user.
if(ASSAY_WERROR AND ((CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION MATCHES "^12[.]") OR
                     (CMAKE_CXX_COMPILER_ID STREQUAL Clang AND CMAKE_CXX_COMPILER_VERSION MATCHES "^14[.]")))
  target_compile_options(assay_warnings INTERFACE -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION MATCHES "^12[.]" AND CMAKE_BUILD_TYPE STREQUAL Release)
  target_compile_options(assay_warnings INTERFACE -Wno-restrict)  # false alarms at -O3 on string + string: gcc bug 105329
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL Clang)
  target_compile_options(assay_warnings INTERFACE -Wthread-safety)
endif()

# assay_library(NAME SRCS a.cc ... [DEPS t ...] [PRIVATE_DEPS t ...])
function(assay_library name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${A_SRCS})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${A_DEPS} PRIVATE assay_warnings ${A_PRIVATE_DEPS})
endfunction()

# assay_together(TARGET FILES): compiles so many files as one, where the headers of gRPC cost more than our own code. Not with
# clang, whose tools want one command per file (the fuzzer does not).
function(assay_together target files)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL Clang OR ASSAY_FUZZ)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${files})
  endif()
endfunction()

# assay_executable(NAME SRCS a.cc ... [DEPS t ...])
function(assay_executable name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  target_link_libraries(${name} PRIVATE assay_warnings ${A_DEPS})
endfunction()

# assay_test(NAME SRCS a_test.cc ... [DEPS t ...] [TIMEOUT seconds]): one gtest binary, one CTest entry.
# Golden data is found by tests/support/golden.h.
function(assay_test name)
  cmake_parse_arguments(A "" "TIMEOUT" "SRCS;DEPS" ${ARGN})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 300)
  endif()
  add_executable(${name} ${A_SRCS})
  target_link_libraries(${name} PRIVATE assay_warnings assay_test_support ${A_DEPS} GTest::gmock GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name} --gtest_output=xml:${CMAKE_BINARY_DIR}/test-results/${name}.xml)
  set_tests_properties(${name} PROPERTIES TIMEOUT ${A_TIMEOUT})
endfunction()

# assay_python_test(NAME FILES a_test.py ... [TIMEOUT seconds]): pytest over the files, one CTest entry. The files are run with
# the environment that scripts/setup makes; ASSAY_BUILD_DIR in the environment is the root of this build tree.
function(assay_python_test name)
  cmake_parse_arguments(A "" "TIMEOUT" "FILES" ${ARGN})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 300)
  endif()
  add_test(NAME ${name} WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
           COMMAND ${ASSAY_PYTHON} -m pytest -q -p no:cacheprovider
                   --junitxml=${CMAKE_BINARY_DIR}/test-results/${name}.xml ${A_FILES})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${A_TIMEOUT}
                       ENVIRONMENT "ASSAY_BUILD_DIR=${CMAKE_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1")
endfunction()

# assay_isa_sources(TARGET FLAGS -mavx2 ... SRCS a_avx2.cc ...): files compiled for one instruction set. They may only be
# entered after base/cpu_info.h has said that the host has it.
function(assay_isa_sources target)
  cmake_parse_arguments(A "" "" "FLAGS;SRCS" ${ARGN})
  set_source_files_properties(${A_SRCS} PROPERTIES COMPILE_OPTIONS "${A_FLAGS}")
  target_sources(${target} PRIVATE ${A_SRCS})
endfunction()
