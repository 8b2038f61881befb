# Compiler settings shared by every room. One INTERFACE target, so that a room links it and says nothing else.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
find_program(MOEPIC_CCACHE ccache)
if(MOEPIC_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${MOEPIC_CCACHE})
endif()
find_package(Threads REQUIRED)

add_library(moepic_options INTERFACE)
target_compile_features(moepic_options INTERFACE cxx_std_20)
target_include_directories(moepic_options INTERFACE ${PROJECT_SOURCE_DIR}/native/src ${PROJECT_SOURCE_DIR}/native/include)
target_link_libraries(moepic_options INTERFACE Threads::Threads)
# No contraction: the exactness contract (docs/design.md, section 8) says where a fused multiply-add stands, so the compiler may not choose.
target_compile_options(moepic_options INTERFACE
  -Wall -Wextra -Wshadow -Wno-unused-parameter -fvisibility=hidden -ffp-contract=off -fno-math-errno)
if(MOEPIC_WERROR)
  target_compile_options(moepic_options INTERFACE -Werror)
endif()
if(MOEPIC_SANITIZE)
  target_compile_options(moepic_options INTERFACE -fsanitize=${MOEPIC_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all -g1)
  target_link_options(moepic_options INTERFACE -fsanitize=${MOEPIC_SANITIZE})
endif()

set(MOEPIC_X86 OFF)
if(MOEPIC_X86_KERNELS AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(MOEPIC_X86 ON)
endif()

# moepic_room(name SOURCES ...): one room of native/src as an object library.
function(moepic_room name)
  cmake_parse_arguments(ARG "" "" "SOURCES" ${ARGN})
  add_library(moepic_${name} OBJECT ${ARG_SOURCES})
  target_link_libraries(moepic_${name} PUBLIC moepic_options)
  set_property(GLOBAL APPEND PROPERTY MOEPIC_ROOMS moepic_${name})
endfunction()
