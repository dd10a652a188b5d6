// Bounded work on the libuv pool, and the one place where native errors become
// JavaScript errors.
#pragma once

#include <napi.h>

#include <exception>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"

namespace virtvault {

// The JavaScript error of `error`: `code`, and `errno` or `libvirtCode` and
// `libvirtDomain` where they are known.
inline Napi::Error toJsError(Napi::Env env, const NativeError& error) {
  Napi::Error js = Napi::Error::New(env, error.what());
  js.Set("code", Napi::String::New(env, error.code()));
  if (error.errorNumber() != 0) js.Set("errno", Napi::Number::New(env, error.errorNumber()));
  if (error.virtCode() != 0) {
    js.Set("libvirtCode", Napi::Number::New(env, error.virtCode()));
    js.Set("libvirtDomain", Napi::Number::New(env, error.virtDomain()));
  }
  return js;
}

// Runs `work` on the libuv pool (four threads by default, shared with fs: never
// wait there) and settles a promise with what `finish` makes of its result on
// the JavaScript thread. `held` values are kept alive until then, so that their
// memory may be used by `work`.
template <class Result>
class Task final : public Napi::AsyncWorker {
 public:
  using Work = std::function<Result()>;
  using Finish = std::function<Napi::Value(Napi::Env, Result&)>;

  static Napi::Promise run(Napi::Env env, std::vector<Napi::Object> held, Work work, Finish finish) {
    auto* task = new Task(env, std::move(held), std::move(work), std::move(finish));
    Napi::Promise promise = task->deferred_.Promise();
    task->Queue();
    return promise;
  }

 protected:
  void Execute() override {
    // AsyncWorker keeps only the message of what Execute throws, so the code
    // is remembered here.
    try {
      result_.emplace(work_());
    } catch (const NativeError& error) {
      error_.emplace(error);
      SetError(error.what());
    } catch (const std::exception& error) {
      error_.emplace("E_INTERNAL", error.what());
      SetError(error_->what());
    }
  }

  void OnOK() override {
    Napi::HandleScope scope(Env());
    try {
      deferred_.Resolve(finish_(Env(), *result_));
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    }
  }

  void OnError(const Napi::Error& fallback) override {
    deferred_.Reject(error_ ? toJsError(Env(), *error_).Value() : fallback.Value());
  }

 private:
  Task(Napi::Env env, std::vector<Napi::Object> held, Work work, Finish finish)
      : Napi::AsyncWorker(env, "virtvault.Task"),
        deferred_(Napi::Promise::Deferred::New(env)),
        work_(std::move(work)),
        finish_(std::move(finish)) {
    held_.reserve(held.size());
    for (auto& value : held) held_.push_back(Napi::Persistent(value));
  }

  Napi::Promise::Deferred deferred_;
  std::vector<Napi::ObjectReference> held_;
  Work work_;
  Finish finish_;
  std::optional<Result> result_;
  std::optional<NativeError> error_;
};

}  // namespace virtvault
