#include "system/process.h"

#include <dirent.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_handle.h"

namespace virtvault {
namespace {

std::vector<pid_t> threadIds() {
  const std::unique_ptr<DIR, Closer<::closedir>> directory(::opendir("/proc/self/task"));
  if (!directory) throwErrno("/proc/self/task");
  std::vector<pid_t> ids;
  while (const dirent* entry = ::readdir(directory.get())) {
    const std::string_view name = entry->d_name;
    pid_t id = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), id);
    if (error == std::errc() && end == name.data() + name.size()) ids.push_back(id);
  }
  return ids;
}

}  // namespace

bool notifySupervisor(const std::string& socket, const std::string& message) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket.empty() || (socket[0] != '/' && socket[0] != '@')) return false;
  if (socket.size() >= sizeof address.sun_path) return false;
  std::copy(socket.begin(), socket.end(), address.sun_path);
  if (socket[0] == '@') address.sun_path[0] = '\0';

  const UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (fd.get() < 0) throwErrno("socket");
  // This runs on the JavaScript thread: a reader that hangs must not hang us.
  const timeval patience{1, 0};
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0) throwErrno("setsockopt");
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + socket.size());
  const ssize_t sent = ::sendto(fd.get(), message.data(), message.size(), MSG_NOSIGNAL,
                                reinterpret_cast<const sockaddr*>(&address), length);
  if (sent >= 0) return true;
  if (errno == ENOENT || errno == ECONNREFUSED || errno == EAGAIN) return false;
  throwErrno("notifying " + socket);
}

void setPriority(int nice, int io_class, int io_level) {
  constexpr int kWhoProcess = 1;
  constexpr int kClassShift = 13;
  // On Linux both belong to threads, and a process id names its first thread only.
  for (const pid_t id : threadIds()) {
    if (::setpriority(PRIO_PROCESS, static_cast<id_t>(id), nice) != 0 && errno != ESRCH) throwErrno("setpriority");
    if (::syscall(SYS_ioprio_set, kWhoProcess, id, (io_class << kClassShift) | io_level) != 0 && errno != ESRCH) {
      throwErrno("ioprio_set");
    }
  }
}

void protectMemory() {
  if (::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) throwErrno("prctl(PR_SET_DUMPABLE)");
  const rlimit none{0, 0};
  if (::setrlimit(RLIMIT_CORE, &none) != 0) throwErrno("setrlimit(RLIMIT_CORE)");
}

}  // namespace virtvault
