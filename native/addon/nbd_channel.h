// Carries the results of one NBD connection's thread to JavaScript promises.
#pragma once

#include <napi.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>

#include "base/error.h"
#include "nbd/options.h"

namespace virtvault {

// Owned by its thread-safe function: lives until the connection's thread has
// ended and all its results are delivered, or until the environment goes.
// Everything but post() and end() belongs to the JavaScript thread.
class NbdChannel {
 public:
  // Makes the value of a settled promise on the JavaScript thread.
  using Value = std::function<Napi::Value(Napi::Env)>;

  static NbdChannel* create(Napi::Env env);

  // A promise that post() settles under `id`. `held` is kept alive until then,
  // and so is the event loop.
  Napi::Promise expect(Napi::Env env, std::uint64_t& id, Napi::Object held = {});
  // Settles a promise whose work never started, from the JavaScript thread.
  void settleNow(Napi::Env env, std::uint64_t id, std::optional<NativeError> error);

  // Any thread, once per id. Promises are bounded by what the connection
  // accepts, so the queue behind this is bounded too and never waits: a blocked
  // event loop must not keep the connection from draining its socket.
  void post(std::uint64_t id, std::optional<NativeError> error, Value value) noexcept;
  // Connection's thread, as its last act: nothing is posted after it.
  void end() noexcept;

  // Makes the object of an open connection; set and called on the JavaScript
  // thread, so that no other thread ever holds a reference into JavaScript.
  std::function<Napi::Value(Napi::Env, const nbd::ExportInfo&)> on_open;

  // Destroys the connection (which joins its thread); called on the JavaScript
  // thread when the thread has ended or the environment goes.
  std::function<void()> on_finish;

 private:
  struct Message {
    std::uint64_t id;
    std::optional<NativeError> error;
    Value value;
  };
  struct Pending {
    Napi::Promise::Deferred deferred;
    Napi::ObjectReference held;
  };

  static void deliver(Napi::Env env, Napi::Function, NbdChannel* channel, Message* message);
  using Function = Napi::TypedThreadSafeFunction<NbdChannel, Message, deliver>;

  void settle(Napi::Env env, Message& message);

  Function function_;
  std::unordered_map<std::uint64_t, Pending> pending_;
  std::uint64_t next_id_ = 0;
  std::atomic<bool> is_closing_{false};
};

}  // namespace virtvault
