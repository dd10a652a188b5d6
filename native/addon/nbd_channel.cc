#include "addon/nbd_channel.h"

#include <utility>

#include "addon/task.h"

namespace virtvault {

NbdChannel* NbdChannel::create(Napi::Env env) {
  auto* channel = new NbdChannel();
  channel->function_ = Function::New(env, "virtvault.NbdConnection", 0, 1, channel,
                                     [](Napi::Env, void*, NbdChannel* self) {
                                       if (self->on_finish) self->on_finish();
                                       delete self;
                                     });
  // Only promises under way keep Node alive, not an idle connection.
  channel->function_.Unref(env);
  return channel;
}

Napi::Promise NbdChannel::expect(Napi::Env env, std::uint64_t& id, Napi::Object held) {
  id = next_id_++;
  Pending pending{Napi::Promise::Deferred::New(env), {}};
  if (!held.IsEmpty()) pending.held = Napi::Persistent(held);
  Napi::Promise promise = pending.deferred.Promise();
  if (pending_.empty()) function_.Ref(env);
  pending_.emplace(id, std::move(pending));
  return promise;
}

void NbdChannel::settleNow(Napi::Env env, std::uint64_t id, std::optional<NativeError> error) {
  Message message{id, std::move(error), nullptr};
  settle(env, message);
}

void NbdChannel::post(std::uint64_t id, std::optional<NativeError> error, Value value) noexcept {
  if (is_closing_.load()) return;
  auto* message = new Message{id, std::move(error), std::move(value)};
  if (function_.NonBlockingCall(message) != napi_ok) {
    // napi_closing: the environment goes, and the call counts as our release.
    is_closing_.store(true);
    delete message;
  }
}

void NbdChannel::end() noexcept {
  if (!is_closing_.load()) function_.Release();
}

void NbdChannel::deliver(Napi::Env env, Napi::Function, NbdChannel* channel, Message* message) {
  // Without an environment the queue is only being emptied, after the channel is gone.
  const std::unique_ptr<Message> owned(message);
  if (static_cast<napi_env>(env) == nullptr) return;
  try {
    channel->settle(env, *owned);
  } catch (const Napi::Error&) {
    // A worker that is being terminated refuses every call; nobody waits for
    // the promise any more.
  }
}

void NbdChannel::settle(Napi::Env env, Message& message) {
  const auto found = pending_.find(message.id);
  if (found == pending_.end()) return;
  Pending pending = std::move(found->second);
  pending_.erase(found);
  if (pending_.empty()) function_.Unref(env);
  if (message.error) {
    pending.deferred.Reject(toJsError(env, *message.error).Value());
    return;
  }
  try {
    pending.deferred.Resolve(message.value ? message.value(env) : env.Undefined());
  } catch (const Napi::Error& error) {
    pending.deferred.Reject(error.Value());
  }
}

}  // namespace virtvault
