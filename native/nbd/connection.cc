#include "nbd/connection.h"

#include <algorithm>
#include <utility>

#include "nbd/worker.h"

namespace virtvault::nbd {

namespace {

// How long a server may take over its goodbye.
constexpr Milliseconds kGoodbye{2'000};

NativeError closedError() { return NativeError("E_NBD", "the NBD connection is closed"); }

}  // namespace

Connection::Connection(ConnectOptions options, Opened opened, Closed ended)
    : options_(std::move(options)),
      thread_([this, opened = std::move(opened), ended = std::move(ended)] { run(opened, ended); }) {}

Connection::~Connection() {
  abort();
  thread_.join();
}

void Connection::submit(std::unique_ptr<Command> command) {
  {
    std::lock_guard lock(mutex_);
    if (end_) throw *end_;
    if (outstanding_ >= kMaxCommands) throw NativeError("E_INTERNAL", "too many calls on one NBD connection");
    outstanding_++;
    queue_.push_back(std::move(command));
  }
  control_.wakeup.notify();
}

bool Connection::close(Closed closed) {
  {
    std::lock_guard lock(mutex_);
    if (has_ended_) return false;
    closers_.push_back(std::move(closed));
    if (!end_) end_ = closedError();
  }
  control_.wakeup.notify();
  return true;
}

void Connection::run(Opened opened, const Closed& ended) noexcept {
  std::optional<NativeError> failure;
  ExportInfo info;
  std::optional<Handle> handle;
  try {
    const TimePoint deadline = Clock::now() + options_.address.connect_timeout;
    handle.emplace(control_);
    handle->connect(options_, deadline);
    info = handle->describe(options_);
  } catch (const NativeError& error) {
    failure = error;
  } catch (const std::exception& error) {
    failure = NativeError("E_INTERNAL", error.what());
  }
  opened(failure ? &*failure : nullptr, info);

  if (!failure) {
    Worker worker(*handle, info, options_.request_timeout);
    try {
      for (bool is_closing = false;;) {
        {
          std::lock_guard lock(mutex_);
          outstanding_ -= worker.takeSettled();
          for (; !queue_.empty(); queue_.pop_front()) worker.add(std::move(queue_.front()));
          is_closing = is_closing || !closers_.empty();
        }
        if (is_closing) {
          // What is on the wire is drained, within its own deadlines: a
          // connection with unread replies at the end of the backup job
          // freezes the domain.
          worker.stop(NativeError("E_INTERRUPTED", "the NBD connection is being closed"));
          worker.settle();
          if (worker.isIdle()) break;
        } else {
          worker.settle();
          worker.fill();
          // An answer may come while a request is being sent; then nothing
          // more may happen on the socket.
          if (worker.settle()) continue;
        }
        worker.step();
      }
      handle->disconnect(Clock::now() + kGoodbye);
    } catch (const NativeError& error) {
      failure = error;
    } catch (const std::exception& error) {
      failure = NativeError("E_INTERNAL", error.what());
    }
    if (failure) {
      // A cut connection breaks wherever it is looked at next.
      if (control_.guard.expired()) failure = NativeError("E_TIMEOUT", "the NBD server sends without end");
      if (control_.aborted.load()) failure = NativeError("E_INTERRUPTED", "NBD: interrupted");
      {
        std::lock_guard lock(mutex_);
        if (!end_ || end_->code() == "E_NBD") end_ = failure;
        for (; !queue_.empty(); queue_.pop_front()) worker.add(std::move(queue_.front()));
      }
      // In this order: after it nothing writes to the callers' buffers.
      handle->close();
      worker.fail(*failure);
    }
  }
  handle.reset();

  std::vector<Closed> closers;
  {
    std::lock_guard lock(mutex_);
    if (!end_) end_ = failure ? *failure : closedError();
    has_ended_ = true;
    closers.swap(closers_);
  }
  for (const auto& closed : closers) closed();
  ended();
}

}  // namespace virtvault::nbd
