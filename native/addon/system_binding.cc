// Glue for native/system. The contract is src/native/system.ts.
#include <string>

#include "addon/bindings.h"
#include "addon/convert.h"
#include "system/files.h"
#include "system/process.h"

namespace virtvault {
namespace {

int toFd(const Arg& arg) { return static_cast<int>(toInteger(arg, 0, INT32_MAX)); }

struct Range {
  int64_t offset;
  int64_t length;
};

Range toRange(const Arg& offset, const Arg& length) {
  const int64_t start = toInteger(offset, 0, kMaxSafeInteger);
  return {start, toInteger(length, 1, kMaxSafeInteger - start)};
}

// Runs `work` on the pool; the promise becomes undefined.
template <class Work>
Napi::Value runVoid(Napi::Env env, Work work) {
  struct Done {};
  return Task<Done>::run(
      env, {},
      [work] {
        work();
        return Done{};
      },
      [](Napi::Env done_env, Done&) -> Napi::Value { return done_env.Undefined(); });
}

Napi::Value flockNow(const Napi::CallbackInfo& info) {
  const int fd = toFd(argAt(info, 0, "fd"));
  const auto mode = static_cast<LockMode>(toInteger(argAt(info, 1, "mode"), 0, 2));
  return callNow(info.Env(), [&] { return Napi::Boolean::New(info.Env(), lockFile(fd, mode)); });
}

Napi::Value renameNow(const Napi::CallbackInfo& info) {
  const std::string from = toText(argAt(info, 0, "from"));
  const std::string to = toText(argAt(info, 1, "to"));
  return callNow(info.Env(), [&] { return Napi::Boolean::New(info.Env(), renameNoReplace(from, to)); });
}

Napi::Value dropCacheLater(const Napi::CallbackInfo& info) {
  const int fd = toFd(argAt(info, 0, "fd"));
  const Range range = toRange(argAt(info, 1, "offset"), argAt(info, 2, "length"));
  return runVoid(info.Env(), [fd, range] { dropCache(fd, range.offset, range.length); });
}

Napi::Value adviseAccessNow(const Napi::CallbackInfo& info) {
  const int fd = toFd(argAt(info, 0, "fd"));
  const Arg access_arg = argAt(info, 1, "access");
  const std::string access = toText(access_arg);
  if (access != "sequential" && access != "random") throwType(access_arg, "'sequential' or 'random'");
  return callNow(info.Env(), [&] {
    adviseAccess(fd, access == "sequential" ? Access::kSequential : Access::kRandom);
    return info.Env().Undefined();
  });
}

Napi::Value fallocateLater(const Napi::CallbackInfo& info) {
  const int fd = toFd(argAt(info, 0, "fd"));
  const Arg mode_arg = argAt(info, 1, "mode");
  const std::string name = toText(mode_arg);
  if (name != "reserve" && name != "punch" && name != "zero") throwType(mode_arg, "'reserve', 'punch' or 'zero'");
  const Allocation mode = name == "reserve" ? Allocation::kReserve
                          : name == "punch" ? Allocation::kPunch
                                            : Allocation::kZero;
  const Range range = toRange(argAt(info, 2, "offset"), argAt(info, 3, "length"));
  return runVoid(info.Env(), [fd, mode, range] { allocate(fd, mode, range.offset, range.length); });
}

Napi::Value nextDataNow(const Napi::CallbackInfo& info) {
  const int fd = toFd(argAt(info, 0, "fd"));
  const int64_t offset = toInteger(argAt(info, 1, "offset"), 0, kMaxSafeInteger);
  return callNow(info.Env(), [&]() -> Napi::Value {
    const auto data = nextData(fd, offset);
    if (!data) return info.Env().Undefined();
    Napi::Array pair = Napi::Array::New(info.Env(), 2);
    pair.Set(0u, Napi::Number::New(info.Env(), static_cast<double>(data->first)));
    pair.Set(1u, Napi::Number::New(info.Env(), static_cast<double>(data->second)));
    return pair;
  });
}

Napi::Value blockDeviceSizeNow(const Napi::CallbackInfo& info) {
  const int fd = toFd(argAt(info, 0, "fd"));
  return callNow(info.Env(), [&] {
    return Napi::Number::New(info.Env(), static_cast<double>(blockDeviceSize(fd)));
  });
}

Napi::Value syncfsLater(const Napi::CallbackInfo& info) {
  const int fd = toFd(argAt(info, 0, "fd"));
  return runVoid(info.Env(), [fd] { syncFileSystem(fd); });
}

Napi::Value sdNotifyNow(const Napi::CallbackInfo& info) {
  const std::string socket = toText(argAt(info, 0, "socket"));
  const std::string message = toText(argAt(info, 1, "message"));
  return callNow(info.Env(), [&] { return Napi::Boolean::New(info.Env(), notifySupervisor(socket, message)); });
}

Napi::Value setPriorityNow(const Napi::CallbackInfo& info) {
  const int nice = static_cast<int>(toInteger(argAt(info, 0, "nice"), -20, 19));
  const int io_class = static_cast<int>(toInteger(argAt(info, 1, "ioClass"), 2, 3));
  const int io_level = static_cast<int>(toInteger(argAt(info, 2, "ioLevel"), 0, 7));
  return callNow(info.Env(), [&] {
    setPriority(nice, io_class, io_level);
    return info.Env().Undefined();
  });
}

Napi::Value protectMemoryNow(const Napi::CallbackInfo& info) {
  return callNow(info.Env(), [&] {
    protectMemory();
    return info.Env().Undefined();
  });
}

}  // namespace

void initSystem(Napi::Env env, Napi::Object exports) {
  exports.Set("flock", Napi::Function::New(env, flockNow, "flock"));
  exports.Set("renameNoReplace", Napi::Function::New(env, renameNow, "renameNoReplace"));
  exports.Set("dropCache", Napi::Function::New(env, dropCacheLater, "dropCache"));
  exports.Set("adviseAccess", Napi::Function::New(env, adviseAccessNow, "adviseAccess"));
  exports.Set("fallocate", Napi::Function::New(env, fallocateLater, "fallocate"));
  exports.Set("nextData", Napi::Function::New(env, nextDataNow, "nextData"));
  exports.Set("blockDeviceSize", Napi::Function::New(env, blockDeviceSizeNow, "blockDeviceSize"));
  exports.Set("syncfs", Napi::Function::New(env, syncfsLater, "syncfs"));
  exports.Set("sdNotify", Napi::Function::New(env, sdNotifyNow, "sdNotify"));
  exports.Set("setPriority", Napi::Function::New(env, setPriorityNow, "setPriority"));
  exports.Set("protectMemory", Napi::Function::New(env, protectMemoryNow, "protectMemory"));
}

}  // namespace virtvault
