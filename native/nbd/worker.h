// The loop that keeps one connection's pipe full. Confined to its thread.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "nbd/command.h"
#include "nbd/handle.h"

namespace virtvault::nbd {

// Requests of several commands share the pipe in the order of the commands:
// the next one starts as soon as the one before has nothing left to ask for,
// not when its answers are in.
class Worker {
 public:
  Worker(Handle& handle, const ExportInfo& info, Milliseconds request_timeout)
      : handle_(handle), info_(info), timeout_(request_timeout) {}

  void add(std::unique_ptr<Command> command) { active_.push_back(std::move(command)); }
  // Asks for as much as the pipe takes.
  void fill();
  // Waits until something happens; throws when the connection is lost or a
  // request has waited for too long.
  void step();
  // Settles what is complete; false when nothing was.
  bool settle();
  // No more requests; commands end with `error` when what was sent is answered.
  void stop(const NativeError& error);
  // After the handle was closed: fails everything with `error`.
  void fail(const NativeError& error) noexcept;

  bool isIdle() const noexcept { return in_flight_.empty(); }
  // How many commands have settled since the last call.
  std::size_t takeSettled() noexcept;

 private:
  struct Callbacks;

  bool issueNext(Command& command);
  void plan(Command& command, Request& request) const;
  std::int64_t send(Request& request);
  void complete(Request& request);
  TimePoint deadline() const;
  void finish(std::unique_ptr<Command> command, const NativeError* error) noexcept;

  Handle& handle_;
  const ExportInfo& info_;
  const Milliseconds timeout_;
  std::deque<std::unique_ptr<Command>> active_;
  std::vector<std::unique_ptr<Request>> in_flight_;
  std::vector<std::unique_ptr<Request>> spare_;
  std::uint64_t bytes_in_flight_ = 0;
  std::size_t settled_ = 0;
  TimePoint last_answer_{};
};

}  // namespace virtvault::nbd
