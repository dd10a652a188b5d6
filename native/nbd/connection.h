// One NBD connection with a thread of its own.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "nbd/command.h"
#include "nbd/handle.h"
#include "nbd/options.h"

namespace virtvault::nbd {

class Connection {
 public:
  // Calls that may wait or be under way at once.
  static constexpr std::size_t kMaxCommands = 256;
  static constexpr std::uint64_t kMaxRequest = 32 << 20;
  static constexpr std::size_t kMaxDepth = 256;

  // `error` is null on success.
  using Opened = std::function<void(const NativeError* error, const ExportInfo& info)>;
  using Closed = std::function<void()>;

  // Starts the thread, which connects. `opened` is called once, `ended` after
  // everything else, as the thread's last act; both on the thread.
  Connection(ConnectOptions options, Opened opened, Closed ended);
  // Aborts where it still runs, and waits for the thread.
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Any thread. Throws E_NBD (or what ended the connection) when the
  // connection is over and E_INTERNAL for nonsense; then `done` is not called.
  void submit(std::unique_ptr<Command> command);
  // Any thread. Finishes what was asked for on the wire, refuses the rest, disconnects.
  // False, and `closed` is not called, where the thread has ended already.
  bool close(Closed closed);
  // Any thread. Drops the socket at once; what is under way fails with E_INTERRUPTED.
  void abort() noexcept { control_.abort(); }

 private:
  void run(Opened opened, const Closed& ended) noexcept;

  const ConnectOptions options_;
  Control control_;
  std::mutex mutex_;
  std::deque<std::unique_ptr<Command>> queue_;  // under mutex_
  std::size_t outstanding_ = 0;                 // under mutex_; submitted and not yet done
  std::vector<Closed> closers_;                 // under mutex_
  std::optional<NativeError> end_;              // under mutex_; set: nothing is accepted any more
  bool has_ended_ = false;                      // under mutex_; closers_ have been called
  std::thread thread_;                          // last: it uses the others

  friend class Worker;
};

}  // namespace virtvault::nbd
