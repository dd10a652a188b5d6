#include "nbd/socket_guard.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <condition_variable>
#include <thread>
#include <vector>

namespace virtvault::nbd {

namespace {
constexpr Milliseconds kCheckInterval{100};
}  // namespace

// One thread per process while there are connections, none otherwise.
class Watchdog {
 public:
  // The one global of the NBD part: it only finds the watchdog that is alive.
  static std::shared_ptr<Watchdog> shared() {
    static std::mutex mutex;
    static std::weak_ptr<Watchdog> alive;
    std::lock_guard lock(mutex);
    auto watchdog = alive.lock();
    if (!watchdog) {
      watchdog = std::make_shared<Watchdog>();
      alive = watchdog;
    }
    return watchdog;
  }

  Watchdog() : thread_([this] { run(); }) {}

  ~Watchdog() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void add(SocketGuard* guard) {
    std::lock_guard lock(mutex_);
    guards_.push_back(guard);
  }

  void remove(SocketGuard* guard) noexcept {
    std::lock_guard lock(mutex_);
    std::erase(guards_, guard);
  }

 private:
  void run() noexcept {
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, kCheckInterval, [this] { return stop_; })) {
      const TimePoint now = Clock::now();
      for (SocketGuard* guard : guards_) guard->check(now);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<SocketGuard*> guards_;  // under mutex_
  bool stop_ = false;                 // under mutex_
  std::thread thread_;                // last: it uses the others
};

SocketGuard::SocketGuard() : watchdog_(Watchdog::shared()) { watchdog_->add(this); }

SocketGuard::~SocketGuard() { watchdog_->remove(this); }

void SocketGuard::watch(int fd) {
  std::lock_guard lock(mutex_);
  copy_ = UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (is_cut_ && copy_.get() >= 0) ::shutdown(copy_.get(), SHUT_RDWR);
}

void SocketGuard::cut() noexcept {
  std::lock_guard lock(mutex_);
  is_cut_ = true;
  if (copy_.get() >= 0) ::shutdown(copy_.get(), SHUT_RDWR);
}

void SocketGuard::check(TimePoint now) noexcept {
  const TimePoint::rep deadline = deadline_.load();
  if (deadline == 0 || now.time_since_epoch().count() < deadline || expired_.load()) return;
  expired_.store(true);
  cut();
}

}  // namespace virtvault::nbd
