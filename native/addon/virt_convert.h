// libvirt's plain values as JavaScript's.
#pragma once

#include <napi.h>

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "virt/link.h"

namespace virtvault {

Napi::Value toJs(Napi::Env env, std::monostate nothing);
Napi::Value toJs(Napi::Env env, bool value);
Napi::Value toJs(Napi::Env env, int value);
// Throws a RangeError above 2^53 - 1.
Napi::Value toJs(Napi::Env env, std::uint64_t value);
Napi::Value toJs(Napi::Env env, const std::string& text);
Napi::Value toJs(Napi::Env env, const VirtDomainInfo& info);
Napi::Value toJs(Napi::Env env, const VirtCheckpointInfo& info);
Napi::Value toJs(Napi::Env env, const VirtJobStats& stats);
Napi::Value toJs(Napi::Env env, const VirtBlockJobInfo& info);
Napi::Value toJs(Napi::Env env, const VirtBlockInfo& info);
Napi::Value toJs(Napi::Env env, const VirtDiskError& error);
Napi::Value toJs(Napi::Env env, const VirtScreenshot& shot);
Napi::Value toJs(Napi::Env env, const VirtSecretBytes& secret);
Napi::Value toJs(Napi::Env env, const VirtEvent& event);

template <class T>
Napi::Value toJs(Napi::Env env, const std::optional<T>& value) {
  return value ? toJs(env, *value) : env.Undefined();
}

template <class T>
Napi::Value toJs(Napi::Env env, const std::vector<T>& values) {
  auto array = Napi::Array::New(env, values.size());
  for (std::size_t i = 0; i < values.size(); i++) array.Set(static_cast<std::uint32_t>(i), toJs(env, values[i]));
  return array;
}

// Arguments. They throw a TypeError where the value is of another type.
std::string textFrom(const Napi::Value& value);
std::optional<std::string> optionalTextFrom(const Napi::Value& value);
std::vector<std::string> textsFrom(const Napi::Value& value);
int intFrom(const Napi::Value& value);
unsigned flagsFrom(const Napi::Value& value);
std::uint64_t bytesFrom(const Napi::Value& value);
// `flag` where the property `key` of the options is true, else 0.
unsigned flagFrom(const Napi::Value& options, const char* key, unsigned flag);
VirtOpenOptions openOptionsFrom(const Napi::Object& options);

}  // namespace virtvault
