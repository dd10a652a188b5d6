#include "addon/virt_convert.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace virtvault {
namespace {

constexpr std::uint64_t kMaxSafeInteger = (std::uint64_t{1} << 53) - 1;

// Builds an object property by property.
class Fields {
 public:
  explicit Fields(Napi::Env env) : env_(env), object_(Napi::Object::New(env)) {}

  template <class T>
  Fields& set(const char* key, const T& value) {
    object_.Set(key, toJs(env_, value));
    return *this;
  }

  Napi::Value done() const { return object_; }

 private:
  Napi::Env env_;
  Napi::Object object_;
};

// The `kind` that src/native/virt.ts gives each event.
struct EventToJs {
  Napi::Env env;

  Fields of(const char* kind) const {
    Fields fields(env);
    fields.set("kind", std::string(kind));
    return fields;
  }

  Napi::Value operator()(const VirtClosed& e) const { return of("closed").set("reason", e.reason).done(); }
  Napi::Value operator()(const VirtLifecycle& e) const {
    return of("lifecycle").set("uuid", e.uuid).set("name", e.name).set("event", e.event).set("detail", e.detail).done();
  }
  Napi::Value operator()(const VirtJobCompleted& e) const {
    return of("job-completed")
        .set("uuid", e.uuid)
        .set("operation", e.operation)
        .set("success", e.success)
        .set("message", e.message)
        .done();
  }
  Napi::Value operator()(const VirtIoError& e) const {
    return of("io-error")
        .set("uuid", e.uuid)
        .set("path", e.path)
        .set("alias", e.alias)
        .set("action", e.action)
        .set("reason", e.reason)
        .done();
  }
  Napi::Value operator()(const VirtAgent& e) const {
    return of("agent").set("uuid", e.uuid).set("connected", e.connected).done();
  }
  Napi::Value operator()(const VirtBlockJob& e) const {
    return of("block-job").set("uuid", e.uuid).set("disk", e.disk).set("type", e.type).set("status", e.status).done();
  }
  Napi::Value operator()(const VirtBlockThreshold& e) const {
    return of("block-threshold").set("uuid", e.uuid).set("device", e.device).set("threshold", e.threshold).done();
  }
  Napi::Value operator()(const VirtMetadata& e) const {
    return of("metadata").set("uuid", e.uuid).set("uri", e.uri).done();
  }
};

[[noreturn]] void throwType(const Napi::Value& value, const char* wanted) {
  throw Napi::TypeError::New(value.Env(), std::string("expected ") + wanted);
}

double integerFrom(const Napi::Value& value, double min, double max) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : std::nan("");
  if (!(number >= min && number <= max) || number != std::floor(number)) throwType(value, "an integer in range");
  return number;
}

}  // namespace

Napi::Value toJs(Napi::Env env, std::monostate) { return env.Undefined(); }
Napi::Value toJs(Napi::Env env, bool value) { return Napi::Boolean::New(env, value); }
Napi::Value toJs(Napi::Env env, int value) { return Napi::Number::New(env, value); }
Napi::Value toJs(Napi::Env env, const std::string& text) { return Napi::String::New(env, text); }

Napi::Value toJs(Napi::Env env, std::uint64_t value) {
  if (value > kMaxSafeInteger) throw Napi::RangeError::New(env, "libvirt gave a number beyond 2^53 - 1");
  return Napi::Number::New(env, static_cast<double>(value));
}

Napi::Value toJs(Napi::Env env, const VirtDomainInfo& info) {
  return Fields(env)
      .set("uuid", info.uuid)
      .set("name", info.name)
      .set("id", info.id)
      .set("state", info.state)
      .set("reason", info.reason)
      .set("persistent", info.persistent)
      .set("hasManagedSave", info.has_managed_save)
      .done();
}

Napi::Value toJs(Napi::Env env, const VirtCheckpointInfo& info) {
  return Fields(env).set("name", info.name).set("parent", info.parent).done();
}

Napi::Value toJs(Napi::Env env, const VirtJobStats& stats) {
  return Fields(env)
      .set("type", stats.type)
      .set("operation", stats.operation)
      .set("elapsedMs", stats.elapsed_ms)
      .set("diskTempUsed", stats.disk_temp_used)
      .set("diskTempTotal", stats.disk_temp_total)
      .done();
}

Napi::Value toJs(Napi::Env env, const VirtBlockJobInfo& info) {
  return Fields(env).set("type", info.type).set("current", info.current).set("end", info.end).done();
}

Napi::Value toJs(Napi::Env env, const VirtBlockInfo& info) {
  return Fields(env)
      .set("capacity", info.capacity)
      .set("allocation", info.allocation)
      .set("physical", info.physical)
      .done();
}

Napi::Value toJs(Napi::Env env, const VirtDiskError& error) {
  return Fields(env).set("disk", error.disk).set("error", error.error).done();
}

Napi::Value toJs(Napi::Env env, const VirtScreenshot& shot) {
  auto bytes = Napi::Uint8Array::New(env, shot.bytes.size());
  if (!shot.bytes.empty()) std::memcpy(bytes.Data(), shot.bytes.data(), shot.bytes.size());
  auto object = Napi::Object::New(env);
  object.Set("mime", toJs(env, shot.mime));
  object.Set("bytes", bytes);
  return object;
}

Napi::Value toJs(Napi::Env env, const VirtSecretBytes& secret) {
  auto bytes = Napi::Uint8Array::New(env, secret.bytes.size());
  if (!secret.bytes.empty()) std::memcpy(bytes.Data(), secret.bytes.data(), secret.bytes.size());
  return bytes;
}

Napi::Value toJs(Napi::Env env, const VirtEvent& event) { return std::visit(EventToJs{env}, event); }

std::string textFrom(const Napi::Value& value) {
  if (!value.IsString()) throwType(value, "a string");
  std::string text = value.As<Napi::String>().Utf8Value();
  // libvirt would silently stop at it.
  if (text.find('\0') != std::string::npos) throwType(value, "a string without NUL characters");
  return text;
}

std::optional<std::string> optionalTextFrom(const Napi::Value& value) {
  if (value.IsUndefined()) return std::nullopt;
  return textFrom(value);
}

std::vector<std::string> textsFrom(const Napi::Value& value) {
  if (!value.IsArray()) throwType(value, "an array of strings");
  const auto array = value.As<Napi::Array>();
  std::vector<std::string> texts;
  texts.reserve(array.Length());
  for (std::uint32_t i = 0; i < array.Length(); i++) texts.push_back(textFrom(array.Get(i)));
  return texts;
}

int intFrom(const Napi::Value& value) {
  return static_cast<int>(integerFrom(value, std::numeric_limits<int>::min(), std::numeric_limits<int>::max()));
}

unsigned flagsFrom(const Napi::Value& value) {
  return static_cast<unsigned>(integerFrom(value, 0, std::numeric_limits<unsigned>::max()));
}

std::uint64_t bytesFrom(const Napi::Value& value) {
  return static_cast<std::uint64_t>(integerFrom(value, 0, static_cast<double>(kMaxSafeInteger)));
}

unsigned flagFrom(const Napi::Value& options, const char* key, unsigned flag) {
  if (!options.IsObject()) throwType(options, "an options object");
  const Napi::Value value = options.As<Napi::Object>().Get(key);
  if (value.IsUndefined()) return 0;
  if (!value.IsBoolean()) throwType(options, "a boolean option");
  return value.As<Napi::Boolean>().Value() ? flag : 0;
}

VirtOpenOptions openOptionsFrom(const Napi::Object& options) {
  VirtOpenOptions result;
  result.uri = textFrom(options.Get("uri"));
  result.username = optionalTextFrom(options.Get("username"));
  result.passphrase = optionalTextFrom(options.Get("passphrase"));
  result.read_only = flagFrom(options, "readOnly", 1) != 0;
  return result;
}

}  // namespace virtvault
