# Finds LibTorch without LibTorch's own package, which (in a CUDA build) stops
# the configuration of every machine without a CUDA toolkit. Used by Hypatia's
# own project and by HypatiaConfig.cmake.

cmake_policy(VERSION 3.18...4.0)

# Sets ${out} to `major.minor.patch` of the LibTorch whose headers are below one
# of the include folders given, or to "" where there is none.
function(hypatia_libtorch_version out)
  set(${out} "" PARENT_SCOPE)
  foreach(include IN LISTS ARGN)
    foreach(header torch/headeronly/version.h
                   torch/csrc/api/include/torch/version.h torch/version.h)
      if(NOT EXISTS "${include}/${header}")
        continue()
      endif()
      set(numbers)
      foreach(part MAJOR MINOR PATCH)
        file(STRINGS "${include}/${header}" line
             REGEX "^#define TORCH_VERSION_${part} +[0-9]+")
        if(line MATCHES "([0-9]+)[^0-9]*$")
          list(APPEND numbers ${CMAKE_MATCH_1})
        endif()
      endforeach()
      list(LENGTH numbers count)
      if(count EQUAL 3)
        list(JOIN numbers "." version)
        set(${out} "${version}" PARENT_SCOPE)
        return()
      endif()
    endforeach()
  endforeach()
endfunction()

# Looks for LibTorch where the user said, then where LibTorch's own variables
# say, then in the folders given. Sets ${out} to its folder, or to
# ${out}-NOTFOUND, and ${out}_LOOKED to a text that lists where it looked.
function(hypatia_find_libtorch out)
  set(places)
  if(HYPATIA_LIBTORCH)
    # A wrong path is better reported than replaced by another LibTorch.
    list(APPEND places "${HYPATIA_LIBTORCH}")
  else()
    list(APPEND places ${LIBTORCH} $ENV{LIBTORCH})
    # Torch_DIR is <LibTorch>/share/cmake/Torch; a prefix may be <LibTorch> or,
    # from torch.utils.cmake_prefix_path, <LibTorch>/share/cmake.
    if(Torch_DIR)
      list(APPEND places "${Torch_DIR}/../../..")
    endif()
    set(prefixes ${CMAKE_PREFIX_PATH})
    if(DEFINED ENV{CMAKE_PREFIX_PATH})
      string(REPLACE ":" ";" from_environment "$ENV{CMAKE_PREFIX_PATH}")
      list(APPEND prefixes ${from_environment})
    endif()
    foreach(prefix IN LISTS prefixes)
      list(APPEND places "${prefix}")
      if(prefix MATCHES "/share/cmake/?$")
        list(APPEND places "${prefix}/../..")
      endif()
    endforeach()
    list(APPEND places ${ARGN})
  endif()

  set(looked)
  foreach(place IN LISTS places)
    get_filename_component(place "${place}" ABSOLUTE)
    hypatia_libtorch_version(version "${place}/include")
    if(version)
      set(${out} "${place}" PARENT_SCOPE)
      return()
    endif()
    list(APPEND looked "${place}")
  endforeach()
  list(REMOVE_DUPLICATES looked)
  list(JOIN looked ", " looked)
  if(looked STREQUAL "")
    set(looked "any folder named")
  endif()
  set(${out} "${out}-NOTFOUND" PARENT_SCOPE)
  set(${out}_LOOKED "${looked}" PARENT_SCOPE)
endfunction()

# Makes the interface target ${target} of the LibTorch in `directory`. Sets
# ${problem} to a text where a library is missing.
function(hypatia_add_libtorch target directory version problem)
  set(files)
  set(quoted)
  foreach(name torch torch_cpu c10)
    # Not cached: another `directory` must not find this one's file.
    unset(file)
    foreach(folder lib lib64)
      if(EXISTS "${directory}/${folder}/lib${name}.so")
        set(file "${directory}/${folder}/lib${name}.so")
        break()
      endif()
    endforeach()
    if(NOT file)
      set(${problem} "hypatia: expected lib${name}.so in ${directory}/lib, \
got none; set HYPATIA_LIBTORCH to a whole LibTorch" PARENT_SCOPE)
      return()
    endif()
    list(APPEND files "${file}")
    string(APPEND quoted " \"${file}\"")
  endforeach()

  add_library(${target} INTERFACE IMPORTED)
  set_target_properties(${target} PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES
      "${directory}/include;${directory}/include/torch/csrc/api/include"
    INTERFACE_COMPILE_DEFINITIONS _GLIBCXX_USE_CXX11_ABI=1
    # One string, which CMake passes on as it stands and in its place. Nothing
    # in a program mentions libtorch.so, yet it is what brings CUDA; and all
    # three must be the program's own, or the loader may take libtorch_cpu.so
    # from the folder that libhypatia.so was linked in. The plain files after
    # it give CMake the run-time path.
    INTERFACE_LINK_LIBRARIES
      "-Wl,--push-state,--no-as-needed${quoted} -Wl,--pop-state;${files}")
  get_property(languages GLOBAL PROPERTY ENABLED_LANGUAGES)
  if("CXX" IN_LIST languages) # A program in C only has no such feature.
    set(standard cxx_std_17)
    if(version VERSION_GREATER_EQUAL 2.13) # Its headers want more.
      set(standard cxx_std_20)
    endif()
    set_target_properties(${target} PROPERTIES
      INTERFACE_COMPILE_FEATURES ${standard})
  endif()
endfunction()
