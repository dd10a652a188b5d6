// Carries answers and events from native threads to the JavaScript thread.
#pragma once

#include <napi.h>

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

namespace virtvault {

// Open from open() to close(), or to the end of the environment, whichever is
// first; afterwards letters are dropped. Any thread may hold and post to it.
class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  // Runs on the JavaScript thread in a handle scope. Where it is dropped, it is
  // destroyed on any thread: it must not own JavaScript references.
  using Letter = std::function<void(Napi::Env)>;

  static std::shared_ptr<Mailbox> open(Napi::Env env);

  // JavaScript thread: one answer more is due. Until it came, Node stays.
  void expectAnswer();
  // Any thread: delivers an answer that was expected.
  void answer(Letter letter);
  // Any thread: delivers an event. Where kMaxEvents wait, the oldest is lost.
  void event(Letter letter);
  // JavaScript thread; idempotent. What has not been delivered is dropped.
  void close();

  static constexpr std::size_t kMaxEvents = 4096;

 private:
  Mailbox() = default;
  static void deliver(napi_env env, napi_value, void* mailbox, void*);
  static void finalize(napi_env, void* holder, void*);
  static void onTeardown(void* mailbox);
  void wake();
  void run(Napi::Env env);

  // `mutex_` guards function_, answers_ and events_.
  std::mutex mutex_;
  napi_threadsafe_function function_ = nullptr;
  std::deque<Letter> answers_, events_;
  // JavaScript thread only.
  napi_env env_ = nullptr;
  std::size_t expected_ = 0;
};

}  // namespace virtvault
