// One libnbd handle, driven by its owner's thread with deadlines.
#pragma once

#include <libnbd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_handle.h"
#include "nbd/options.h"
#include "nbd/socket_guard.h"

namespace virtvault::nbd {

// The calling thread's last libnbd error. Call it before any other libnbd
// function: the text belongs to the thread and the next call frees it.
NativeError lastError(std::string_view what, const char* code = nullptr);

// Set by any thread; wakes the thread that runs the handle.
class Wakeup {
 public:
  Wakeup();
  int fd() const noexcept { return fd_.get(); }
  void notify() noexcept;
  void drain() noexcept;

 private:
  UniqueFd fd_;  // eventfd
};

// What other threads may touch of a running handle. Outlives it.
struct Control {
  Wakeup wakeup;
  SocketGuard guard;
  std::atomic<bool> aborted{false};

  void abort() noexcept;
};

// Confined to one thread. libnbd forbids closing a handle while another thread
// uses it, so the thread that opens it also polls and closes it.
class Handle {
 public:
  explicit Handle(Control& control);
  ~Handle();
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  nbd_handle* get() const noexcept { return handle_.get(); }

  // Connects and finishes the handshake before `deadline`; throws E_NBD,
  // E_NBD_PROTOCOL, E_TIMEOUT or E_INTERRUPTED.
  void connect(const ConnectOptions& options, TimePoint deadline);
  // The exports that the server names; `options` name no export. Ends the connection.
  std::vector<ListedExport> list(const ConnectOptions& options, TimePoint deadline);

  // Waits for the socket, a wakeup or `deadline`, then lets libnbd run.
  // Returns false when the deadline has passed. Throws when the connection is lost.
  bool step(TimePoint deadline);

  bool isUsable() const noexcept;
  // What the server says of the export; throws E_NBD_PROTOCOL where it makes no sense.
  ExportInfo describe(const ConnectOptions& options) const;

  // Ends the connection in order where that works before `deadline`, then closes.
  void disconnect(TimePoint deadline) noexcept;
  // Closes at once. Callbacks of what was under way run with an error.
  void close() noexcept;

 private:
  struct Close {
    void operator()(nbd_handle* handle) const noexcept { nbd_close(handle); }
  };

  void configure(const ConnectOptions& options, bool list);
  void negotiate(const ConnectOptions& options, TimePoint deadline, bool list);
  void start(const Address& address, TimePoint deadline);
  using Option = std::function<int(nbd_completion_callback done)>;
  // Sends one option and waits for its answer; the errno that the server gave, or 0.
  int sendOption(TimePoint deadline, const std::string& name, const Option& option);
  template <class Going>
  void driveWhile(Going going, TimePoint deadline, std::string_view what);

  Control& control_;
  std::unique_ptr<nbd_handle, Close> handle_;
  bool is_command_ = false;
};

}  // namespace virtvault::nbd
