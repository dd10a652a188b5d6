#include "virt/lane.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

namespace virtvault {

// `mutex` guards everything.
struct VirtLane::State {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Job> jobs;
  unsigned threads = 0;
  bool finished = false;
  std::function<void()> last;
};

VirtLane::VirtLane(unsigned threads) : state_(std::make_shared<State>()) {
  state_->threads = threads;
  for (unsigned i = 0; i < threads; i++) std::thread(run, state_).detach();
}

VirtLane::~VirtLane() {
  finish([] {});
}

bool VirtLane::post(Job job) {
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->finished || state_->jobs.size() >= kMaxQueued) return false;
    state_->jobs.push_back(std::move(job));
  }
  state_->changed.notify_one();
  return true;
}

void VirtLane::finish(std::function<void()> last) {
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->finished) return;
    state_->finished = true;
    state_->last = std::move(last);
  }
  state_->changed.notify_all();
}

void VirtLane::run(const std::shared_ptr<State>& state) {
  std::unique_lock lock(state->mutex);
  while (true) {
    state->changed.wait(lock, [&] { return state->finished || !state->jobs.empty(); });
    if (state->jobs.empty()) break;
    Job job = std::move(state->jobs.front());
    state->jobs.pop_front();
    const bool cancelled = state->finished;
    lock.unlock();
    job(cancelled);
    job = nullptr;  // what it held is released without the lock
    lock.lock();
  }
  if (--state->threads > 0) return;
  const std::function<void()> last = std::move(state->last);
  lock.unlock();
  last();
}

}  // namespace virtvault
