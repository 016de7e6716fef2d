# CUDA, where there is a toolkit: ASSAY_CUDA AUTO, ON (an error without one) or OFF. Kernels are also compiled for the CPU's
# emulator (base/cuda/emulator.h), toolkit or not: that is how their tests run in CI.
set(ASSAY_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO (where nvcc is found), ON, OFF")
# Unless said otherwise, for the GPUs of this machine; without any, for one, so that the code is compiled.
if(NOT DEFINED CACHE{ASSAY_CUDA_ARCHITECTURES})
  set(found)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE capabilities
                  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE no_gpu)
  if(NOT no_gpu)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]+" capabilities "${capabilities}")
    foreach(capability ${capabilities})
      string(REPLACE "." "" architecture ${capability})
      string(REGEX REPLACE "^90$" "90a" architecture ${architecture})
      list(APPEND found ${architecture}-real)
    endforeach()
    list(REMOVE_DUPLICATES found)
  endif()
  if(NOT found)
    set(found 90a-real)
  endif()
  set(ASSAY_CUDA_ARCHITECTURES "${found}" CACHE STRING
      "What nvcc compiles for; all that is supported: 75-real;80-real;86-real;89-real;90a-real;120-real;80-virtual")
endif()
set(ASSAY_HAS_CUDA OFF)
if(NOT ASSAY_CUDA STREQUAL OFF AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  find_program(ASSAY_NVCC nvcc PATHS /usr/local/cuda/bin ENV CUDA_PATH PATH_SUFFIXES bin)
  if(ASSAY_NVCC)
    set(CMAKE_CUDA_COMPILER ${ASSAY_NVCC})
    set(CMAKE_CUDA_ARCHITECTURES ${ASSAY_CUDA_ARCHITECTURES})
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # what CMake 3.25 says of nvcc with a host compiler that it does not name
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    if(CCACHE)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
    endif()
    find_package(CUDAToolkit REQUIRED)
    set(ASSAY_HAS_CUDA ON)
    message(STATUS "CUDA: ${ASSAY_NVCC}, architectures ${ASSAY_CUDA_ARCHITECTURES}")
  elseif(ASSAY_CUDA STREQUAL ON)
    message(FATAL_ERROR "ASSAY_CUDA=ON, but no nvcc was found")
  endif()
endif()
if(NOT ASSAY_HAS_CUDA)
  message(STATUS "CUDA: not built (no nvcc, or not asked for); its kernels run in the emulator's tests only")
endif()

# Devices that kernels are also tried for on another one: scripts/gpu_check builds them as PTX alone, which the driver compiles
# for what it has, and the tests of kernels play such a device (ASSAY_TEST_CUDA_PROFILE).
set(ASSAY_PLAYED_DEVICES)
if(ASSAY_GPU_CHECK AND ASSAY_HAS_CUDA)
  set(ASSAY_PLAYED_DEVICES 75 86 89)
endif()

# assay_cuda_library(NAME ARCHITECTURES a.cu ...): for the driver.
function(assay_cuda_library name architectures)
  set(werror)
  if(ASSAY_WERROR AND CMAKE_CXX_COMPILER_VERSION MATCHES "^12[.]")
    set(werror -Werror=all-warnings)
  endif()
  add_library(${name} STATIC ${ARGN})
  set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES "${architectures}")
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_compile_options(${name} PRIVATE -fmad=false ${werror} -Xcompiler=-Wall,-Wextra
                         --compress-mode=size -Xptxas=-warn-spills)
  target_link_libraries(${name} PUBLIC CUDA::cudart_static)
endfunction()

# assay_cuda_kernels(NAME SRCS a.cu ...): the library NAME_emulated and, with a toolkit, NAME. Both have the same functions, in
# the namespaces assay::emulated and assay::cuda. a*b+c is two roundings unless a kernel says Fma: as in the emulator.
function(assay_cuda_kernels name)
  cmake_parse_arguments(A "" "" "SRCS" ${ARGN})
  set(wrapped)
  foreach(source ${A_SRCS})
    cmake_path(ABSOLUTE_PATH source OUTPUT_VARIABLE path)
    cmake_path(RELATIVE_PATH path BASE_DIRECTORY ${PROJECT_SOURCE_DIR} OUTPUT_VARIABLE relative)
    set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/${source}.emulated.cc)
    file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${relative}\"\n")
    list(APPEND wrapped ${wrapper})
  endforeach()
  assay_library(${name}_emulated SRCS ${wrapped} DEPS assay_cuda_emulator)
  target_compile_options(${name}_emulated PRIVATE -ffp-contract=off -Wno-unknown-pragmas)
  set_target_properties(${name}_emulated PROPERTIES EXCLUDE_FROM_ALL ON)  # for tests alone
  if(ASSAY_HAS_CUDA)
    assay_cuda_library(${name} "${ASSAY_CUDA_ARCHITECTURES}" ${A_SRCS})
    foreach(device ${ASSAY_PLAYED_DEVICES})
      assay_cuda_library(${name}_sm${device} ${device}-virtual ${A_SRCS})
    endforeach()
  endif()
endfunction()

# assay_cuda_cubins(ARCHITECTURE a.cu ...): build/cubins/a.sm_ARCHITECTURE.cubin, whose instructions tests/cuda_opcodes_test.py
# looks at.
function(assay_cuda_cubins architecture)
  if(NOT ASSAY_HAS_CUDA OR ASSAY_GPU_CHECK)
    return()
  endif()
  foreach(source ${ARGN})
    cmake_path(GET source STEM name)
    set(cubin ${CMAKE_BINARY_DIR}/cubins/${name}.sm_${architecture}.cubin)
    add_custom_command(
      OUTPUT ${cubin} DEPENDS ${PROJECT_SOURCE_DIR}/${source} DEPFILE ${cubin}.d VERBATIM
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/cubins
      COMMAND ${ASSAY_NVCC} -std=c++20 -arch=sm_${architecture} -fmad=false -I${PROJECT_SOURCE_DIR} -MD -MF ${cubin}.d
              -cubin ${PROJECT_SOURCE_DIR}/${source} -o ${cubin})
    add_custom_target(cubin_${name}_${architecture} ALL DEPENDS ${cubin})
  endforeach()
endfunction()

# assay_cuda_test(NAME SRCS a_test.cc ... [KERNELS k ...] [DEPS t ...]): tests of the kernels in libraries k, for both worlds
# (tests/support/cuda_world.h): NAME_test in the emulator and, with a toolkit, NAME_gpu_test on a device, which CTest knows by
# the label gpu; NAME_sm86_gpu_test, ... for devices that are played, label gpu_played. None under sanitizers: fibers that
# change stacks are not theirs.
add_custom_target(gpu_check)
function(assay_cuda_test name)
  if(CMAKE_CXX_FLAGS MATCHES "-fsanitize")
    return()
  endif()
  cmake_parse_arguments(A "" "" "SRCS;KERNELS;DEPS" ${ARGN})
  list(TRANSFORM A_KERNELS APPEND _emulated OUTPUT_VARIABLE emulated)
  assay_test(${name}_test SRCS ${A_SRCS} DEPS ${emulated} assay_cuda_world_emulated ${A_DEPS})
  target_compile_definitions(${name}_test PRIVATE ASSAY_WORLD=emulated)
  if(NOT ASSAY_HAS_CUDA)
    return()
  endif()
  add_library(${name}_gpu_objects OBJECT ${A_SRCS})
  target_compile_definitions(${name}_gpu_objects PRIVATE ASSAY_WORLD=cuda)
  target_link_libraries(${name}_gpu_objects PRIVATE assay_warnings assay_test_support assay_cuda_world_driver ${A_DEPS})
  assay_gpu_test(${name}_gpu_test gpu ${name}_gpu_objects "${A_KERNELS}" "${A_DEPS}")
  foreach(device ${ASSAY_PLAYED_DEVICES})
    list(TRANSFORM A_KERNELS APPEND _sm${device} OUTPUT_VARIABLE kernels)
    assay_gpu_test(${name}_sm${device}_gpu_test gpu_played ${name}_gpu_objects "${kernels}" "${A_DEPS}")
    set_tests_properties(${name}_sm${device}_gpu_test PROPERTIES
                         ENVIRONMENT "CUDA_FORCE_PTX_JIT=1;ASSAY_TEST_CUDA_PROFILE=sm${device}")
  endforeach()
endfunction()
function(assay_gpu_test name label objects kernels deps)
  add_executable(${name} $<TARGET_OBJECTS:${objects}>)
  target_link_libraries(${name} PRIVATE assay_test_support assay_cuda_world_driver ${kernels} ${deps}
                        GTest::gmock GTest::gtest)
  add_test(NAME ${name} COMMAND ${name} --gtest_output=xml:${CMAKE_BINARY_DIR}/test-results/${name}.xml)
  set_tests_properties(${name} PROPERTIES TIMEOUT 300 LABELS ${label})
  add_dependencies(gpu_check ${name})
endfunction()
