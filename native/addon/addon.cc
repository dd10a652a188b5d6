// Registers the parts of the addon. No logic.
#include <napi.h>

#include "addon/bindings.h"

namespace {

// Must equal BINDING_VERSION in src/native/binding.ts; raised with every change
// of a signature, so that a stale build is refused by name.
constexpr int kBindingVersion = 5;

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("bindingVersion", Napi::Number::New(env, kBindingVersion));
  virtvault::initCodec(env, exports);
  virtvault::initNbd(env, exports);
  virtvault::initSystem(env, exports);
  virtvault::initVirt(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(virtvault, init)
