// What each part of the addon registers on the exports object.
#pragma once

#include <napi.h>

namespace virtvault {

void initCodec(Napi::Env env, Napi::Object exports);
void initNbd(Napi::Env env, Napi::Object exports);
void initSystem(Napi::Env env, Napi::Object exports);
void initVirt(Napi::Env env, Napi::Object exports);

}  // namespace virtvault
