// A few threads that make blocking calls in the order in which they are asked for.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace virtvault {

// Owned by one thread (JavaScript's). Its threads are detached and share their
// state with it, because a libvirt call may block for half a minute and
// nobody's exit should wait that long; so the library that holds their code
// must never be unloaded (binding.gyp links with -z nodelete).
class VirtLane {
 public:
  // Told whether the lane was finished before its turn came; then it must only
  // say so to whoever waits. Must not throw.
  using Job = std::function<void(bool cancelled)>;

  explicit VirtLane(unsigned threads);
  // As finish() with nothing to do last.
  ~VirtLane();
  VirtLane(const VirtLane&) = delete;
  VirtLane& operator=(const VirtLane&) = delete;

  // false where the lane is finished or has kMaxQueued jobs waiting.
  bool post(Job job);

  // Cancels what waits, and has the last thread to leave run `last` once the
  // calls under way have returned. Does not block; only the first call counts.
  void finish(std::function<void()> last);

  static constexpr std::size_t kMaxQueued = 4096;

 private:
  struct State;
  static void run(const std::shared_ptr<State>& state);

  std::shared_ptr<State> state_;
};

}  // namespace virtvault
