// libvirt's errors as ours, in one place.
#pragma once

#include <string_view>

#include "base/error.h"

namespace virtvault {

// Throws the calling thread's last libvirt error. Call it before any other
// libvirt function: the next call on this thread replaces the error.
[[noreturn]] void throwVirt(std::string_view what);

// VIR_ERR_* of the calling thread's last error; 0 without one.
int lastVirtCode() noexcept;

// Gives back `result`, or throws where it says that the call failed.
template <class T>
T* virtChecked(T* result, std::string_view what) {
  if (result == nullptr) throwVirt(what);
  return result;
}

inline int virtChecked(int result, std::string_view what) {
  if (result < 0) throwVirt(what);
  return result;
}

}  // namespace virtvault
