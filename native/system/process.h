// System calls about this process. Each throws NativeError E_IO with the errno,
// unless it says otherwise.
#pragma once

#include <string>

namespace virtvault {

// Sends one datagram to a notification socket (a path, or '@' and an abstract
// name). false where there is none, or nobody reads it within a second.
bool notifySupervisor(const std::string& socket, const std::string& message);

// io_class 2 best-effort, 3 idle. All threads that there are; later ones
// inherit it from the thread that makes them.
void setPriority(int nice, int io_class, int io_level);

// Keeps keys out of core files and away from ptrace.
void protectMemory();

}  // namespace virtvault
