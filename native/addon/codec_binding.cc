#include "addon/bindings.h"

namespace virtvault {

void initCodec(Napi::Env env, Napi::Object exports) {
  static_cast<void>(env);
  static_cast<void>(exports);
}

}  // namespace virtvault
