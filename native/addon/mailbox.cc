#include "addon/mailbox.h"

#include <utility>

namespace virtvault {

std::shared_ptr<Mailbox> Mailbox::open(Napi::Env env) {
  const std::shared_ptr<Mailbox> mailbox(new Mailbox());
  mailbox->env_ = env;
  // The queue holds one wake-up; the letters are ours. The function keeps the
  // mailbox alive until it is finalized.
  auto* holder = new std::shared_ptr<Mailbox>(mailbox);
  const napi_status status = napi_create_threadsafe_function(
      env, nullptr, nullptr, Napi::String::New(env, "virtvault.Mailbox"), 1, 1, holder, finalize, mailbox.get(),
      deliver, &mailbox->function_);
  if (status != napi_ok) {
    delete holder;
    throw Napi::Error::New(env, "cannot create a thread-safe function");
  }
  napi_unref_threadsafe_function(env, mailbox->function_);
  // Hooks run last in, first out: this one before the function's own, so that
  // no thread uses the function while it goes.
  napi_add_env_cleanup_hook(env, onTeardown, mailbox.get());
  return mailbox;
}

void Mailbox::expectAnswer() {
  const std::lock_guard lock(mutex_);
  if (function_ != nullptr && expected_++ == 0) napi_ref_threadsafe_function(env_, function_);
}

void Mailbox::answer(Letter letter) {
  const std::lock_guard lock(mutex_);
  if (function_ == nullptr) return;
  answers_.push_back(std::move(letter));
  wake();
}

void Mailbox::event(Letter letter) {
  const std::lock_guard lock(mutex_);
  if (function_ == nullptr) return;
  if (events_.size() >= kMaxEvents) events_.pop_front();
  events_.push_back(std::move(letter));
  wake();
}

void Mailbox::close() {
  const std::lock_guard lock(mutex_);
  if (function_ == nullptr) return;
  napi_remove_env_cleanup_hook(env_, onTeardown, this);
  // The end of the environment finds nothing left to do.
  napi_release_threadsafe_function(std::exchange(function_, nullptr), napi_tsfn_abort);
  answers_.clear();
  events_.clear();
}

// Called with the lock held. A full queue means that a wake-up is on its way
// which will see this letter too; closing, that nobody will.
void Mailbox::wake() { static_cast<void>(napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking)); }

void Mailbox::deliver(napi_env env, napi_value, void* mailbox, void*) {
  if (env != nullptr) static_cast<Mailbox*>(mailbox)->shared_from_this()->run(Napi::Env(env));
}

void Mailbox::run(Napi::Env env) {
  std::deque<Letter> answers, events;
  {
    const std::lock_guard lock(mutex_);
    answers.swap(answers_);
    events.swap(events_);
    if (!answers.empty()) {
      expected_ -= answers.size();
      if (expected_ == 0 && function_ != nullptr) napi_unref_threadsafe_function(env, function_);
    }
  }
  // Events first: what happened before a call returned is known before its answer.
  for (auto* letters : {&events, &answers}) {
    for (auto& letter : *letters) {
      const Napi::HandleScope scope(env);
      try {
        letter(env);
      } catch (const Napi::Error& error) {
        napi_fatal_exception(env, error.Value());
      }
    }
  }
}

void Mailbox::finalize(napi_env, void* holder, void*) { delete static_cast<std::shared_ptr<Mailbox>*>(holder); }

void Mailbox::onTeardown(void* mailbox) {
  auto& self = *static_cast<Mailbox*>(mailbox);
  const std::lock_guard lock(self.mutex_);
  self.function_ = nullptr;
  self.answers_.clear();
  self.events_.clear();
}

}  // namespace virtvault
