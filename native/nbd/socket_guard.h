// Cuts a connection from outside the thread that runs it.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>

#include "base/unique_handle.h"
#include "nbd/options.h"

namespace virtvault::nbd {

class Watchdog;

// libnbd reads for as long as the socket has something to read, so a server
// that sends without end keeps the thread inside one libnbd call, where no
// deadline of ours is looked at. The guard holds a duplicate of the socket:
// shutting that down makes libnbd see the end of the stream.
class SocketGuard {
 public:
  // Registers with the process's watchdog thread, which lives as long as any guard.
  SocketGuard();
  ~SocketGuard();
  SocketGuard(const SocketGuard&) = delete;
  SocketGuard& operator=(const SocketGuard&) = delete;

  // Connection's thread. Follows `fd` from now on.
  void watch(int fd);
  // Connection's thread: around every call that may read from the socket.
  void enter(TimePoint deadline) noexcept { deadline_.store(deadline.time_since_epoch().count()); }
  void leave() noexcept { deadline_.store(0); }
  // The watchdog cut the connection because a deadline had passed.
  bool expired() const noexcept { return expired_.load(); }

  // Any thread.
  void cut() noexcept;
  // Watchdog's thread.
  void check(TimePoint now) noexcept;

 private:
  std::shared_ptr<Watchdog> watchdog_;
  std::atomic<TimePoint::rep> deadline_{0};
  std::atomic<bool> expired_{false};
  std::mutex mutex_;
  bool is_cut_ = false;  // under mutex_
  UniqueFd copy_;        // under mutex_
};

}  // namespace virtvault::nbd
