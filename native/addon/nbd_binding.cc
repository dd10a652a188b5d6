// The NBD part of the addon: converts, and hands over to native/nbd.
#include <cmath>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "addon/bindings.h"
#include "addon/nbd_channel.h"
#include "addon/task.h"
#include "nbd/connection.h"

namespace virtvault {

namespace {

using nbd::Command;
using nbd::ConnectOptions;
using nbd::ExportInfo;
using nbd::Kind;

NativeError badArgument(const std::string& what) { return NativeError("E_INTERNAL", "nbd: bad argument: " + what); }

std::uint64_t toCount(const Napi::Value& value, const char* what) {
  if (!value.IsNumber()) throw badArgument(what);
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= 0 && number <= static_cast<double>(nbd::kMaxSize)) || number != std::floor(number)) {
    throw badArgument(what);
  }
  return static_cast<std::uint64_t>(number);
}

std::string toText(const Napi::Value& value) {
  if (value.IsUndefined() || value.IsNull()) return {};
  if (!value.IsString()) throw badArgument("text expected");
  std::string text = value.As<Napi::String>().Utf8Value();
  if (text.find('\0') != std::string::npos) throw badArgument("NUL in a text");
  return text;
}

std::vector<std::string> toTexts(const Napi::Value& value) {
  std::vector<std::string> texts;
  if (value.IsUndefined()) return texts;
  if (!value.IsArray()) throw badArgument("array expected");
  const auto array = value.As<Napi::Array>();
  for (std::uint32_t i = 0; i < array.Length(); i++) texts.push_back(toText(array.Get(i)));
  return texts;
}

bool toBool(const Napi::Value& value) { return value.IsBoolean() && value.As<Napi::Boolean>().Value(); }

nbd::Address toAddress(const Napi::Object& from) {
  nbd::Address address;
  address.socket = toText(from.Get("socket"));
  address.host = toText(from.Get("host"));
  address.uri = toText(from.Get("uri"));
  address.command = toTexts(from.Get("command"));
  const int ways = !address.socket.empty() + !address.host.empty() + !address.uri.empty() + !address.command.empty();
  if (ways != 1) throw badArgument("one of socket, host, uri and command is needed");
  const Napi::Value port = from.Get("port");
  if (!port.IsUndefined()) {
    const auto number = toCount(port, "port");
    if (number > 65'535) throw badArgument("port");
    address.port = std::to_string(number);
  }
  const Napi::Value timeout = from.Get("connectTimeoutMs");
  if (!timeout.IsUndefined()) address.connect_timeout = nbd::Milliseconds(toCount(timeout, "connectTimeoutMs"));
  const Napi::Value tls = from.Get("tls");
  if (tls.IsObject()) {
    const auto object = tls.As<Napi::Object>();
    // Only an explicit false turns the check off.
    const Napi::Value verify = object.Get("verifyPeer");
    address.tls = nbd::TlsOptions{toText(object.Get("certificates")), toText(object.Get("pskFile")),
                                  toText(object.Get("username")),
                                  !verify.IsBoolean() || verify.As<Napi::Boolean>().Value()};
  }
  return address;
}

ConnectOptions toConnectOptions(const Napi::Object& from) {
  ConnectOptions options;
  options.address = toAddress(from);
  options.export_name = toText(from.Get("exportName"));
  options.contexts = toTexts(from.Get("metaContexts"));
  options.optional_contexts = toTexts(from.Get("optionalContexts"));
  options.request_timeout = nbd::Milliseconds(toCount(from.Get("requestTimeoutMs"), "requestTimeoutMs"));
  if (options.request_timeout.count() == 0) throw badArgument("requestTimeoutMs");
  options.writable = toBool(from.Get("writable"));
  return options;
}

std::optional<NativeError> toOptional(const NativeError* error) {
  return error != nullptr ? std::optional<NativeError>(*error) : std::nullopt;
}

// The object behind NativeNbdConnection in src/native/nbd.ts.
class NbdConnection final : public Napi::ObjectWrap<NbdConnection> {
 public:
  struct Parts {
    NbdChannel* channel;
    std::shared_ptr<std::unique_ptr<nbd::Connection>> connection;
    ExportInfo info;
  };

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "NbdConnection",
                       {InstanceMethod<&NbdConnection::blockStatus>("blockStatus"),
                        InstanceMethod<&NbdConnection::read>("read"), InstanceMethod<&NbdConnection::write>("write"),
                        InstanceMethod<&NbdConnection::zero>("zero"), InstanceMethod<&NbdConnection::flush>("flush"),
                        InstanceMethod<&NbdConnection::close>("close"),
                        InstanceMethod<&NbdConnection::abort>("abort")});
  }

  explicit NbdConnection(const Napi::CallbackInfo& info) : Napi::ObjectWrap<NbdConnection>(info) {
    if (!info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "nbdConnect() makes connections");
    auto* parts = info[0].As<Napi::External<Parts>>().Data();
    channel_ = parts->channel;
    connection_ = parts->connection;
    info_ = parts->info;
    Napi::Object self = info.This().As<Napi::Object>();
    const Napi::Env env = info.Env();
    self.Set("size", Napi::Number::New(env, static_cast<double>(info_.size)));
    self.Set("canMultiConn", Napi::Boolean::New(env, info_.multi_conn));
    self.Set("isReadOnly", Napi::Boolean::New(env, info_.read_only));
    self.Set("canZero", Napi::Boolean::New(env, info_.can_zero));
    self.Set("canTrim", Napi::Boolean::New(env, info_.can_trim));
    self.Set("canFlush", Napi::Boolean::New(env, info_.can_flush));
    self.Set("minimumBlock", Napi::Number::New(env, info_.minimum_block));
    self.Set("preferredBlock", Napi::Number::New(env, info_.preferred_block));
    self.Set("maximumBlock", Napi::Number::New(env, info_.maximum_block));
    auto contexts = Napi::Array::New(env);
    for (const auto& name : info_.contexts) contexts.Set(contexts.Length(), Napi::String::New(env, name));
    self.Set("contexts", contexts);
  }

  // Collected without close(): the socket goes at once, the thread's last
  // message ends the channel.
  ~NbdConnection() override {
    if (*connection_) (*connection_)->abort();
  }

 private:
  // Settles with what `work` submits; a refusal becomes a rejection.
  template <class Work>
  Napi::Value call(const Napi::CallbackInfo& info, Napi::Object held, Work work) {
    const Napi::Env env = info.Env();
    if (!*connection_) {
      auto deferred = Napi::Promise::Deferred::New(env);
      deferred.Reject(toJsError(env, NativeError("E_NBD", "the NBD connection is closed")).Value());
      return deferred.Promise();
    }
    // The connection's object stays alive while one of its promises is open.
    Napi::Object keep = Napi::Object::New(env);
    keep.Set("connection", info.This());
    if (!held.IsEmpty()) keep.Set("buffer", held);
    std::uint64_t id = 0;
    Napi::Promise promise = channel_->expect(env, id, keep);
    try {
      work(id);
    } catch (const NativeError& error) {
      channel_->settleNow(env, id, error);
    }
    return promise;
  }

  void submit(std::unique_ptr<Command> command, std::uint64_t id, std::uint64_t buffer_length) {
    nbd::validate(*command, info_, buffer_length);
    NbdChannel* channel = channel_;
    if (command->kind == Kind::kBlockStatus) {
      command->done = [channel, id](const NativeError* error, std::vector<nbd::ExtentList> extents) {
        auto shared = std::make_shared<std::vector<nbd::ExtentList>>(std::move(extents));
        channel->post(id, toOptional(error), [shared](Napi::Env env) -> Napi::Value {
          auto lists = Napi::Array::New(env, shared->size());
          for (std::size_t i = 0; i < shared->size(); i++) {
            const auto& list = (*shared)[i];
            auto array = Napi::Float64Array::New(env, list.size());
            std::copy(list.begin(), list.end(), array.Data());
            lists.Set(static_cast<std::uint32_t>(i), array);
          }
          return lists;
        });
      };
    } else {
      command->done = [channel, id](const NativeError* error, std::vector<nbd::ExtentList>) {
        channel->post(id, toOptional(error), nullptr);
      };
    }
    (*connection_)->submit(std::move(command));
  }

  Napi::Value transfer(const Napi::CallbackInfo& info, Kind kind) {
    Napi::Object buffer = info[1].IsTypedArray() ? info[1].As<Napi::Object>() : Napi::Object();
    return call(info, buffer, [&](std::uint64_t id) {
      if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_float64_array) {
        throw badArgument("pieces");
      }
      if (!info[1].IsTypedArray() || info[1].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
        throw badArgument("buffer");
      }
      const auto numbers = info[0].As<Napi::Float64Array>();
      const auto bytes = info[1].As<Napi::Uint8Array>();
      if (numbers.ElementLength() % 3 != 0) throw badArgument("pieces");
      auto command = std::make_unique<Command>();
      command->kind = kind;
      command->pieces.reserve(numbers.ElementLength() / 3);
      const auto at = [&numbers](std::size_t i) {
        const double number = numbers[i];
        if (!(number >= 0 && number <= static_cast<double>(nbd::kMaxSize)) || number != std::floor(number)) {
          throw badArgument("pieces");
        }
        return static_cast<std::uint64_t>(number);
      };
      for (std::size_t i = 0; i < numbers.ElementLength(); i += 3) {
        command->pieces.push_back({at(i), at(i + 1), at(i + 2)});
      }
      command->buffer = const_cast<std::uint8_t*>(bytes.Data());
      command->max_request = toCount(info[2], "maxRequest");
      command->depth = static_cast<std::size_t>(toCount(info[3], "depth"));
      if (command->max_request == 0 || command->max_request > nbd::Connection::kMaxRequest) {
        throw badArgument("maxRequest");
      }
      if (command->depth == 0 || command->depth > nbd::Connection::kMaxDepth) throw badArgument("depth");
      submit(std::move(command), id, bytes.ByteLength());
    });
  }

  Napi::Value read(const Napi::CallbackInfo& info) { return transfer(info, Kind::kRead); }
  Napi::Value write(const Napi::CallbackInfo& info) { return transfer(info, Kind::kWrite); }

  Napi::Value simple(const Napi::CallbackInfo& info, Kind kind) {
    return call(info, {}, [&](std::uint64_t id) {
      auto command = std::make_unique<Command>();
      command->kind = kind;
      command->depth = nbd::Connection::kMaxDepth;
      if (kind != Kind::kFlush) command->pieces.push_back({toCount(info[0], "offset"), toCount(info[1], "length"), 0});
      if (kind == Kind::kZero) command->punch = toBool(info[2]);
      submit(std::move(command), id, 0);
    });
  }

  Napi::Value blockStatus(const Napi::CallbackInfo& info) { return simple(info, Kind::kBlockStatus); }
  Napi::Value zero(const Napi::CallbackInfo& info) { return simple(info, Kind::kZero); }
  Napi::Value flush(const Napi::CallbackInfo& info) { return simple(info, Kind::kFlush); }

  Napi::Value close(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    if (!*connection_) {
      auto deferred = Napi::Promise::Deferred::New(env);
      deferred.Resolve(env.Undefined());
      return deferred.Promise();
    }
    return call(info, {}, [&](std::uint64_t id) {
      NbdChannel* channel = channel_;
      const bool is_pending = (*connection_)->close([channel, id] { channel->post(id, std::nullopt, nullptr); });
      if (!is_pending) channel->settleNow(env, id, std::nullopt);
    });
  }

  void abort(const Napi::CallbackInfo&) {
    if (*connection_) (*connection_)->abort();
  }

  // Valid while *connection_ is set: the channel's end clears that first.
  NbdChannel* channel_ = nullptr;
  std::shared_ptr<std::unique_ptr<nbd::Connection>> connection_;
  ExportInfo info_;
};

Napi::Value rejected(Napi::Env env, const NativeError& error) {
  auto deferred = Napi::Promise::Deferred::New(env);
  deferred.Reject(toJsError(env, error).Value());
  return deferred.Promise();
}

Napi::Value nbdConnect(const Napi::CallbackInfo& info, const std::shared_ptr<Napi::FunctionReference>& constructor) {
  const Napi::Env env = info.Env();
  if (!info[0].IsObject()) return rejected(env, badArgument("options"));
  ConnectOptions options;
  try {
    options = toConnectOptions(info[0].As<Napi::Object>());
  } catch (const NativeError& error) {
    return rejected(env, error);
  }
  NbdChannel* channel = NbdChannel::create(env);
  auto connection = std::make_shared<std::unique_ptr<nbd::Connection>>();
  channel->on_finish = [connection] { connection->reset(); };
  channel->on_open = [channel, connection, constructor](Napi::Env js, const ExportInfo& found) -> Napi::Value {
    NbdConnection::Parts parts{channel, connection, found};
    return constructor->New({Napi::External<NbdConnection::Parts>::New(js, &parts)});
  };
  std::uint64_t id = 0;
  Napi::Promise promise = channel->expect(env, id);
  auto opened = [channel, id](const NativeError* error, const ExportInfo& found) {
    channel->post(id, toOptional(error), [channel, found](Napi::Env js) { return channel->on_open(js, found); });
  };
  try {
    *connection = std::make_unique<nbd::Connection>(std::move(options), opened, [channel] { channel->end(); });
  } catch (const std::exception& error) {
    channel->settleNow(env, id, NativeError("E_INTERNAL", error.what()));
    channel->end();
  }
  return promise;
}

// Lists on a thread of its own: waiting for a server has no place on the libuv pool.
class Lister {
 public:
  using Done = std::function<void(std::optional<NativeError>, std::vector<nbd::ListedExport>)>;

  Lister(ConnectOptions options, Done done, std::function<void()> ended)
      : thread_([this, options = std::move(options), done = std::move(done), ended = std::move(ended)] {
          std::vector<nbd::ListedExport> exports;
          std::optional<NativeError> failure;
          try {
            nbd::Handle handle(control_);
            exports = handle.list(options, nbd::Clock::now() + options.address.connect_timeout);
          } catch (const NativeError& error) {
            failure = error;
          } catch (const std::exception& error) {
            failure = NativeError("E_INTERNAL", error.what());
          }
          done(failure, std::move(exports));
          ended();
        }) {}

  ~Lister() {
    control_.abort();
    thread_.join();
  }

 private:
  nbd::Control control_;
  std::thread thread_;
};

Napi::Value nbdList(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsObject()) return rejected(env, badArgument("options"));
  ConnectOptions options;
  try {
    options.address = toAddress(info[0].As<Napi::Object>());
  } catch (const NativeError& error) {
    return rejected(env, error);
  }
  NbdChannel* channel = NbdChannel::create(env);
  auto lister = std::make_shared<std::unique_ptr<Lister>>();
  channel->on_finish = [lister] { lister->reset(); };
  std::uint64_t id = 0;
  Napi::Promise promise = channel->expect(env, id);
  auto done = [channel, id](std::optional<NativeError> error, std::vector<nbd::ListedExport> exports) {
    channel->post(id, std::move(error), [exports = std::move(exports)](Napi::Env js) -> Napi::Value {
      auto list = Napi::Array::New(js, exports.size());
      for (std::size_t i = 0; i < exports.size(); i++) {
        auto item = Napi::Object::New(js);
        item.Set("name", exports[i].name);
        item.Set("description", exports[i].description);
        if (exports[i].size) item.Set("size", Napi::Number::New(js, static_cast<double>(*exports[i].size)));
        list.Set(static_cast<std::uint32_t>(i), item);
      }
      return list;
    });
  };
  try {
    *lister = std::make_unique<Lister>(std::move(options), done, [channel] { channel->end(); });
  } catch (const std::exception& error) {
    channel->settleNow(env, id, NativeError("E_INTERNAL", error.what()));
    channel->end();
  }
  return promise;
}

}  // namespace

void initNbd(Napi::Env env, Napi::Object exports) {
  auto constructor = std::make_shared<Napi::FunctionReference>(Napi::Persistent(NbdConnection::define(env)));
  exports.Set("nbdConnect", Napi::Function::New(env, [constructor](const Napi::CallbackInfo& info) {
                return nbdConnect(info, constructor);
              }));
  exports.Set("nbdList", Napi::Function::New(env, nbdList));
}

}  // namespace virtvault
