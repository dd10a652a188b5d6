// Arguments from JavaScript, checked before anything believes them. Each
// function throws a TypeError that names the argument and what it must be.
#pragma once

#include <napi.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "addon/task.h"
#include "base/error.h"
#include "base/unique_handle.h"

namespace virtvault {

// A value with the name it has in the TypeScript declaration.
struct Arg {
  Napi::Value value;
  std::string name;

  bool isAbsent() const { return value.IsEmpty() || value.IsUndefined(); }
};

[[noreturn]] inline void throwType(const Arg& arg, const std::string& expected) {
  throw Napi::TypeError::New(arg.value.Env(), arg.name + " must be " + expected);
}

inline Arg argAt(const Napi::CallbackInfo& info, size_t index, const char* name) { return {info[index], name}; }

inline Napi::Object toObject(const Arg& arg) {
  if (!arg.value.IsObject()) throwType(arg, "an object");
  return arg.value.As<Napi::Object>();
}

inline Arg fieldOf(const Arg& object, const char* name) {
  return {toObject(object).Get(name), object.name + "." + name};
}

// An integer in [least, most]; bounds within 2^53.
inline int64_t toInteger(const Arg& arg, int64_t least, int64_t most) {
  const std::string expected = "an integer from " + std::to_string(least) + " to " + std::to_string(most);
  if (!arg.value.IsNumber()) throwType(arg, expected);
  const double number = arg.value.As<Napi::Number>().DoubleValue();
  // Written so that NaN fails too.
  if (!(number >= static_cast<double>(least) && number <= static_cast<double>(most)) || std::trunc(number) != number) {
    throwType(arg, expected);
  }
  return static_cast<int64_t>(number);
}

inline constexpr int64_t kMaxSafeInteger = (int64_t{1} << 53) - 1;

inline bool toBoolean(const Arg& arg) {
  if (!arg.value.IsBoolean()) throwType(arg, "a boolean");
  return arg.value.As<Napi::Boolean>().Value();
}

// For names of files, sockets and domains: a NUL inside would cut it short.
inline std::string toText(const Arg& arg) {
  if (!arg.value.IsString()) throwType(arg, "a string");
  std::string text = arg.value.As<Napi::String>().Utf8Value();
  if (text.find('\0') != std::string::npos) throwType(arg, "a string without NUL");
  return text;
}

// Borrows: keep the object alive (Task's `held`) for as long as the span lives.
inline std::span<uint8_t> toBytes(const Arg& arg) {
  if (!arg.value.IsTypedArray() || arg.value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throwType(arg, "a Uint8Array");
  }
  auto array = arg.value.As<Napi::Uint8Array>();
  return {array.Data(), array.ByteLength()};
}

inline std::span<const uint8_t> toBytesOf(const Arg& arg, size_t length) {
  const std::span<const uint8_t> bytes = toBytes(arg);
  if (bytes.size() != length) throwType(arg, "a Uint8Array of " + std::to_string(length) + " bytes");
  return bytes;
}

// Copies, so that what was checked stays what is used, whatever the caller does.
inline std::vector<uint32_t> toUint32s(const Arg& arg) {
  if (!arg.value.IsTypedArray() || arg.value.As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array) {
    throwType(arg, "a Uint32Array");
  }
  auto array = arg.value.As<Napi::Uint32Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

// Memory from malloc becomes a Uint8Array without a copy; freed when JavaScript
// lets go of it. V8 counts it as external memory, which is what makes it
// collect in time.
inline Napi::Uint8Array handOver(Napi::Env env, std::unique_ptr<uint8_t, Closer<std::free>> data, size_t size) {
  uint8_t* memory = data.get();
  const auto buffer = Napi::ArrayBuffer::New(env, memory, size, [](Napi::Env, void* bytes) { std::free(bytes); });
  static_cast<void>(data.release());
  return Napi::Uint8Array::New(env, size, buffer, 0);
}

template <class Item>
Napi::Uint8Array copyBytes(Napi::Env env, const std::vector<Item>& items) {
  static_assert(sizeof(Item) == 1);
  Napi::Uint8Array array = Napi::Uint8Array::New(env, items.size());
  for (size_t i = 0; i < items.size(); i++) array[i] = static_cast<uint8_t>(items[i]);
  return array;
}

inline Napi::Uint32Array copyUint32s(Napi::Env env, const std::vector<uint32_t>& items) {
  Napi::Uint32Array array = Napi::Uint32Array::New(env, items.size());
  for (size_t i = 0; i < items.size(); i++) array[i] = items[i];
  return array;
}

// Runs a short call on the JavaScript thread; what it throws gets its code.
template <class Call>
auto callNow(Napi::Env env, Call&& call) -> decltype(call()) {
  try {
    return call();
  } catch (const NativeError& error) {
    throw toJsError(env, error);
  }
}

}  // namespace virtvault
