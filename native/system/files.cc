#include "system/files.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "base/error.h"

namespace virtvault {
namespace {

// `unsupported` says which errno means that the call is not to be had here.
[[noreturn]] void throwUnless(bool unsupported, const std::string& what) {
  const int error_number = errno;
  if (!unsupported) throwErrno(what, error_number);
  throw NativeError("E_UNSUPPORTED", what + ": " + std::strerror(error_number), error_number);
}

bool isNotThere(int error_number) noexcept {
  return error_number == EOPNOTSUPP || error_number == ENOSYS || error_number == EINVAL;
}

template <class Call>
auto retryInterrupted(Call call) -> decltype(call()) {
  while (true) {
    const auto result = call();
    if (result != -1 || errno != EINTR) return result;
  }
}

}  // namespace

bool lockFile(int fd, LockMode mode) {
  const int operation = mode == LockMode::kRelease ? LOCK_UN : mode == LockMode::kShared ? LOCK_SH : LOCK_EX;
  if (retryInterrupted([&] { return ::flock(fd, operation | LOCK_NB); }) == 0) return true;
  if (errno == EWOULDBLOCK) return false;
  throwUnless(errno == ENOSYS || errno == EOPNOTSUPP, "flock");
}

bool renameNoReplace(const std::string& from, const std::string& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return true;
  if (errno == EEXIST) return false;
  throwUnless(isNotThere(errno), "renaming " + from + " to " + to);
}

void dropCache(int fd, int64_t offset, int64_t length) {
  constexpr unsigned int kWriteAndWait =
      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  // Dirty pages would survive the advice below. A failed write-back is told
  // only once per open file: swallowed here, a later fsync would succeed.
  if (retryInterrupted([&] { return ::sync_file_range(fd, offset, length, kWriteAndWait); }) != 0 &&
      errno != ENOSYS && errno != ESPIPE) {
    throwErrno("sync_file_range");
  }
  const int failure = ::posix_fadvise(fd, offset, length, POSIX_FADV_DONTNEED);
  if (failure != 0 && failure != ENOSYS && failure != ESPIPE) throwErrno("posix_fadvise", failure);
}

void adviseAccess(int fd, Access access) {
  const int advice = access == Access::kSequential ? POSIX_FADV_SEQUENTIAL : POSIX_FADV_RANDOM;
  const int failure = ::posix_fadvise(fd, 0, 0, advice);
  if (failure != 0 && failure != ENOSYS && failure != ESPIPE) throwErrno("posix_fadvise", failure);
}

void allocate(int fd, Allocation mode, int64_t offset, int64_t length) {
  int flags = FALLOC_FL_KEEP_SIZE;
  if (mode == Allocation::kPunch) flags |= FALLOC_FL_PUNCH_HOLE;
  if (mode == Allocation::kZero) flags |= FALLOC_FL_ZERO_RANGE;
  if (retryInterrupted([&] { return ::fallocate(fd, flags, offset, length); }) == 0) return;
  // ENODEV: a terminal, a pipe, a device that cannot.
  throwUnless(isNotThere(errno) || errno == ENODEV, "fallocate");
}

std::optional<std::pair<int64_t, int64_t>> nextData(int fd, int64_t offset) {
  const off_t start = ::lseek(fd, offset, SEEK_DATA);
  if (start < 0) {
    if (errno == ENXIO) return std::nullopt;
    throwUnless(isNotThere(errno) || errno == ESPIPE, "seeking data");
  }
  const off_t end = ::lseek(fd, start, SEEK_HOLE);
  if (end < 0) {
    // The file was cut between the two calls.
    if (errno == ENXIO) return std::nullopt;
    throwErrno("seeking a hole");
  }
  // A hole punched between the two calls: what was data is none.
  if (end <= start) return nextData(fd, start + 1);
  return std::pair<int64_t, int64_t>(start, end);
}

int64_t blockDeviceSize(int fd) {
  uint64_t size = 0;
  if (::ioctl(fd, BLKGETSIZE64, &size) != 0) throwUnless(errno == ENOTTY || isNotThere(errno), "BLKGETSIZE64");
  if (size > static_cast<uint64_t>(INT64_MAX)) throw NativeError("E_IO", "BLKGETSIZE64: impossible size");
  return static_cast<int64_t>(size);
}

void syncFileSystem(int fd) {
  if (retryInterrupted([&] { return ::syncfs(fd); }) != 0) throwErrno("syncfs");
}

}  // namespace virtvault
