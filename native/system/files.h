// System calls on files that Node does not offer. Offsets and lengths are
// bytes. Each throws NativeError: E_NO_SPACE, E_UNSUPPORTED where the kernel or
// the file system does not have the call, else E_IO; always with the errno.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

namespace virtvault {

enum class LockMode { kRelease = 0, kShared = 1, kExclusive = 2 };

// false where another holder is in the way.
bool lockFile(int fd, LockMode mode);

// false where `to` exists.
bool renameNoReplace(const std::string& from, const std::string& to);

// Writes the part back, waits for that, and drops it from the page cache.
void dropCache(int fd, int64_t offset, int64_t length);

enum class Access { kSequential, kRandom };
void adviseAccess(int fd, Access access);

enum class Allocation { kReserve, kPunch, kZero };
// Never changes the size of the file.
void allocate(int fd, Allocation mode, int64_t offset, int64_t length);

// [start, end) of the next data at or after `offset`, cut at the end of the
// file. Moves the position of `fd`.
std::optional<std::pair<int64_t, int64_t>> nextData(int fd, int64_t offset);

int64_t blockDeviceSize(int fd);

void syncFileSystem(int fd);

}  // namespace virtvault
