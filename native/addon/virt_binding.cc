// src/native/virt.ts in C++: converts arguments and results, and decides nothing
// but which connection a call takes.
#include <libvirt/libvirt.h>

#include <atomic>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "addon/bindings.h"
#include "addon/mailbox.h"
#include "addon/task.h"
#include "addon/virt_convert.h"
#include "virt/lane.h"
#include "virt/link.h"

namespace virtvault {
namespace {

// The daemon serves five requests of a connection at once and lets the sixth
// wait, for 30 s where the five wait for a lock: so three, and a connection of
// its own for what must never wait. Rescue has two threads, so that one domain
// whose agent hangs does not hold up another's abort.
constexpr unsigned kWorkThreads = 3;
constexpr unsigned kRescueThreads = 2;

constexpr char kClosedEarly[] = "the connection to libvirt was closed before the call";

// Held by the JavaScript object and by every call under way.
struct Connections {
  std::unique_ptr<VirtLink> work, rescue;
};

// The JavaScript face of one NativeVirtConnection. Confined to the JavaScript
// thread; the lanes share only `connections_` and `mailbox_`.
class VirtConnection final : public Napi::ObjectWrap<VirtConnection> {
 public:
  struct Parts {
    std::shared_ptr<Mailbox> mailbox;
    std::shared_ptr<Connections> connections = std::make_shared<Connections>();
    std::unique_ptr<VirtLane> work = std::make_unique<VirtLane>(kWorkThreads);
    std::unique_ptr<VirtLane> rescue = std::make_unique<VirtLane>(kRescueThreads);
    // On the JavaScript thread only.
    Napi::FunctionReference listener;
  };

  static Napi::Function define(Napi::Env env);

  explicit VirtConnection(const Napi::CallbackInfo& info) : Napi::ObjectWrap<VirtConnection>(info) {
    if (info.Length() != 1 || !info[0].IsExternal()) {
      throw Napi::TypeError::New(info.Env(), "connections are made by virtConnect");
    }
    parts_ = *info[0].As<Napi::External<std::shared_ptr<Parts>>>().Data();
  }

  // Collected without close(): nobody waits for an answer any more.
  ~VirtConnection() override {
    if (parts_ && !closed_) release(*parts_, [] {});
    if (parts_) parts_->mailbox->close();
  }

  // Finishes both lanes; the last thread out closes the connections, which may
  // block, and then calls `done`.
  static void release(Parts& parts, std::function<void()> done) {
    struct Left {
      std::shared_ptr<Connections> connections;
      std::atomic<int> lanes = 2;
      std::function<void()> done;
    };
    auto left = std::make_shared<Left>();
    left->connections = std::move(parts.connections);
    left->done = std::move(done);
    const auto leave = [left] {
      if (--left->lanes > 0) return;
      left->connections.reset();
      left->done();
    };
    parts.rescue->finish(leave);
    parts.work->finish(leave);
  }

 private:
  using Info = Napi::CallbackInfo;

  // Runs `call` with the work (or rescue) connection on one of its threads; the
  // promise settles with what it returns or throws.
  template <class Call>
  Napi::Value onWork(const Info& info, Call call) {
    return enqueue(info.Env(), *parts_->work, &Connections::work, std::move(call));
  }
  template <class Call>
  Napi::Value onRescue(const Info& info, Call call) {
    return enqueue(info.Env(), *parts_->rescue, &Connections::rescue, std::move(call));
  }

  template <class Call>
  Napi::Value enqueue(Napi::Env env, VirtLane& lane, std::unique_ptr<VirtLink> Connections::* which, Call call) {
    const auto deferred = Napi::Promise::Deferred::New(env);
    const auto refuse = [env, &deferred](const char* why) {
      deferred.Reject(toJsError(env, NativeError("E_LIBVIRT_CONNECT", why)).Value());
      return deferred.Promise();
    };
    if (closed_) return refuse("the connection to libvirt is closed");

    auto job = [this, deferred, which, call = std::move(call), mailbox = parts_->mailbox,
                connections = parts_->connections](bool cancelled) {
      mailbox->answer(settling(cancelled ? rejection(deferred, NativeError("E_LIBVIRT_CONNECT", kClosedEarly))
                                         : outcome(deferred, *((*connections).*which), call)));
    };
    expect();
    if (!lane.post(std::move(job))) {
      parts_->mailbox->answer(
          settling(rejection(deferred, NativeError("E_LIBVIRT", "too many calls to libvirt are waiting"))));
    }
    return deferred.Promise();
  }

  // Between the two the object is not collected: a caller may hold nothing but
  // the promise.
  void expect() {
    Ref();
    parts_->mailbox->expectAnswer();
  }
  Mailbox::Letter settling(Mailbox::Letter letter) {
    return [this, letter = std::move(letter)](Napi::Env env) {
      letter(env);
      Unref();
    };
  }

  static Mailbox::Letter rejection(const Napi::Promise::Deferred& deferred, const NativeError& error) {
    return [deferred, error](Napi::Env env) { deferred.Reject(toJsError(env, error).Value()); };
  }

  template <class Call>
  static Mailbox::Letter outcome(const Napi::Promise::Deferred& deferred, const VirtLink& link, const Call& call) {
    using Result = std::invoke_result_t<const Call&, const VirtLink&>;
    try {
      if constexpr (std::is_void_v<Result>) {
        call(link);
        return [deferred](Napi::Env env) { deferred.Resolve(env.Undefined()); };
      } else {
        return [deferred, result = call(link)](Napi::Env env) {
          try {
            deferred.Resolve(toJs(env, result));
          } catch (const Napi::Error& error) {
            deferred.Reject(error.Value());
          }
        };
      }
    } catch (const NativeError& error) {
      return rejection(deferred, error);
    } catch (const std::exception& error) {
      return rejection(deferred, NativeError("E_INTERNAL", error.what()));
    }
  }

  // connection
  Napi::Value hostname(const Info& info) { return onWork(info, std::mem_fn(&VirtLink::hostname)); }
  Napi::Value daemonVersion(const Info& info) { return onWork(info, std::mem_fn(&VirtLink::daemonVersion)); }
  Napi::Value driver(const Info& info) { return onWork(info, std::mem_fn(&VirtLink::driver)); }
  Napi::Value hypervisorVersion(const Info& info) { return onWork(info, std::mem_fn(&VirtLink::hypervisorVersion)); }
  Napi::Value capabilities(const Info& info) { return onWork(info, std::mem_fn(&VirtLink::capabilities)); }
  Napi::Value isAlive(const Info& info) {
    return onRescue(info, [connections = parts_->connections](const VirtLink& rescue) {
      return rescue.isAlive() && connections->work->isAlive();
    });
  }
  Napi::Value volumePath(const Info& info) {
    return onWork(info, [pool = textFrom(info[0]), volume = textFrom(info[1])](const VirtLink& link) {
      return link.volumePath(pool, volume);
    });
  }
  Napi::Value secretValue(const Info& info) { return withText(info, &VirtLink::secretValue); }
  Napi::Value poolTargetPath(const Info& info) { return withText(info, &VirtLink::poolTargetPath); }

  // The many calls with one or two texts, on the work connection.
  template <class Result>
  Napi::Value withText(const Info& info, Result (VirtLink::*method)(const std::string&) const) {
    return onWork(info, [method, a = textFrom(info[0])](const VirtLink& link) { return (link.*method)(a); });
  }
  template <class Result>
  Napi::Value withTexts(const Info& info, Result (VirtLink::*method)(const std::string&, const std::string&) const) {
    return onWork(info, [method, a = textFrom(info[0]), b = textFrom(info[1])](const VirtLink& link) {
      return (link.*method)(a, b);
    });
  }
  template <class Result>
  Napi::Value withTextOnRescue(const Info& info, Result (VirtLink::*method)(const std::string&) const) {
    return onRescue(info, [method, a = textFrom(info[0])](const VirtLink& link) { return (link.*method)(a); });
  }
  template <class Result>
  Napi::Value withTextFlags(const Info& info, unsigned flags,
                            Result (VirtLink::*method)(const std::string&, unsigned) const) {
    return onWork(info, [method, a = textFrom(info[0]), flags](const VirtLink& link) {
      return (link.*method)(a, flags);
    });
  }
  template <class Result>
  Napi::Value withTextsFlags(const Info& info,
                             Result (VirtLink::*method)(const std::string&, const std::string&, unsigned) const) {
    return onWork(info, [method, a = textFrom(info[0]), b = textFrom(info[1]), flags = flagsFrom(info[2])](
                            const VirtLink& link) { return (link.*method)(a, b, flags); });
  }

  // domains
  Napi::Value listDomains(const Info& info) { return onWork(info, std::mem_fn(&VirtLink::listDomains)); }
  Napi::Value lookupDomain(const Info& info) { return withText(info, &VirtLink::lookupDomain); }
  Napi::Value domainXml(const Info& info) {
    const unsigned flags = flagFrom(info[1], "inactive", VIR_DOMAIN_XML_INACTIVE) |
                           flagFrom(info[1], "secure", VIR_DOMAIN_XML_SECURE);
    return withTextFlags(info, flags, &VirtLink::domainXml);
  }
  Napi::Value defineDomain(const Info& info) {
    return withTextFlags(info, flagFrom(info[1], "validate", VIR_DOMAIN_DEFINE_VALIDATE), &VirtLink::defineDomain);
  }
  static unsigned startFlags(const Napi::Value& options) {
    return flagFrom(options, "paused", VIR_DOMAIN_START_PAUSED) |
           flagFrom(options, "autodestroy", VIR_DOMAIN_START_AUTODESTROY) |
           flagFrom(options, "forceBoot", VIR_DOMAIN_START_FORCE_BOOT);
  }
  Napi::Value createDomain(const Info& info) {
    return withTextFlags(info, startFlags(info[1]), &VirtLink::createDomain);
  }
  Napi::Value createDomainXml(const Info& info) {
    return withTextFlags(info, startFlags(info[1]), &VirtLink::createDomainXml);
  }
  Napi::Value destroyDomain(const Info& info) {
    return withTextFlags(info, flagFrom(info[1], "graceful", VIR_DOMAIN_DESTROY_GRACEFUL), &VirtLink::destroyDomain);
  }
  Napi::Value shutdownDomain(const Info& info) { return withText(info, &VirtLink::shutdownDomain); }
  Napi::Value suspendDomain(const Info& info) { return withText(info, &VirtLink::suspendDomain); }
  Napi::Value resumeDomain(const Info& info) { return withTextOnRescue(info, &VirtLink::resumeDomain); }
  Napi::Value undefineDomain(const Info& info) {
    return withTextFlags(info, flagsFrom(info[1]), &VirtLink::undefineDomain);
  }
  Napi::Value managedSaveRemove(const Info& info) { return withText(info, &VirtLink::managedSaveRemove); }
  Napi::Value getMetadata(const Info& info) { return withTexts(info, &VirtLink::getMetadata); }
  Napi::Value setMetadata(const Info& info) {
    return onWork(info, [uuid = textFrom(info[0]), ns = textFrom(info[1]), prefix = textFrom(info[2]),
                         xml = optionalTextFrom(info[3])](const VirtLink& link) {
      link.setMetadata(uuid, ns, prefix, xml);
    });
  }
  Napi::Value attachDevice(const Info& info) { return withTextsFlags(info, &VirtLink::attachDevice); }
  Napi::Value detachDevice(const Info& info) { return withTextsFlags(info, &VirtLink::detachDevice); }
  Napi::Value screenshot(const Info& info) { return withText(info, &VirtLink::screenshot); }

  // backup jobs and disks
  Napi::Value backupBegin(const Info& info) {
    return onWork(info, [uuid = textFrom(info[0]), backup = textFrom(info[1]), checkpoint = optionalTextFrom(info[2]),
                         flags = flagsFrom(info[3])](const VirtLink& link) {
      link.backupBegin(uuid, backup, checkpoint, flags);
    });
  }
  Napi::Value backupXml(const Info& info) { return withTextOnRescue(info, &VirtLink::backupXml); }
  Napi::Value abortJob(const Info& info) { return withTextOnRescue(info, &VirtLink::abortJob); }
  Napi::Value jobStats(const Info& info) { return withTextOnRescue(info, &VirtLink::jobStats); }
  Napi::Value blockJobType(const Info& info) {
    return onWork(info, [uuid = textFrom(info[0]), disk = textFrom(info[1])](const VirtLink& link) {
      const auto job = link.blockJobInfo(uuid, disk);
      return job ? std::optional<int>(job->type) : std::nullopt;
    });
  }
  Napi::Value blockPull(const Info& info) {
    return onWork(info, [uuid = textFrom(info[0]), disk = textFrom(info[1]), bytes = bytesFrom(info[2])](
                            const VirtLink& link) { link.blockPull(uuid, disk, bytes); });
  }
  Napi::Value blockJobAbort(const Info& info) { return withTexts(info, &VirtLink::blockJobAbort); }
  Napi::Value blockJobInfo(const Info& info) { return withTexts(info, &VirtLink::blockJobInfo); }
  Napi::Value blockInfo(const Info& info) { return withTexts(info, &VirtLink::blockInfo); }
  Napi::Value blockResize(const Info& info) {
    return onWork(info, [uuid = textFrom(info[0]), disk = textFrom(info[1]), bytes = bytesFrom(info[2])](
                            const VirtLink& link) { link.blockResize(uuid, disk, bytes); });
  }
  Napi::Value setBlockThreshold(const Info& info) {
    return onWork(info, [uuid = textFrom(info[0]), device = textFrom(info[1]), bytes = bytesFrom(info[2])](
                            const VirtLink& link) { link.setBlockThreshold(uuid, device, bytes); });
  }
  Napi::Value diskErrors(const Info& info) { return withText(info, &VirtLink::diskErrors); }

  // checkpoints
  Napi::Value listCheckpoints(const Info& info) { return withText(info, &VirtLink::listCheckpoints); }
  Napi::Value checkpointXml(const Info& info) { return withTextsFlags(info, &VirtLink::checkpointXml); }
  Napi::Value createCheckpoint(const Info& info) { return withTextsFlags(info, &VirtLink::createCheckpoint); }
  Napi::Value deleteCheckpoint(const Info& info) { return withTextsFlags(info, &VirtLink::deleteCheckpoint); }

  // guest agent
  Napi::Value agentSetTimeout(const Info& info) {
    return onWork(info, [uuid = textFrom(info[0]), seconds = intFrom(info[1])](const VirtLink& link) {
      link.agentSetTimeout(uuid, seconds);
    });
  }
  Napi::Value agentPing(const Info& info) {
    return onWork(info, [uuid = textFrom(info[0]), seconds = intFrom(info[1])](const VirtLink& link) {
      link.agentPing(uuid, seconds);
    });
  }
  Napi::Value agentCommand(const Info& info) {
    return onWork(info, [uuid = textFrom(info[0]), json = textFrom(info[1]), seconds = intFrom(info[2])](
                            const VirtLink& link) { return link.agentCommand(uuid, json, seconds); });
  }
  Napi::Value fsFreeze(const Info& info) {
    return onWork(info, [uuid = textFrom(info[0]), mountpoints = textsFrom(info[1])](const VirtLink& link) {
      return link.fsFreeze(uuid, mountpoints);
    });
  }
  Napi::Value fsThaw(const Info& info) {
    return onRescue(info, [uuid = textFrom(info[0]), mountpoints = textsFrom(info[1])](const VirtLink& link) {
      return link.fsThaw(uuid, mountpoints);
    });
  }

  Napi::Value close(const Info& info) {
    const auto deferred = Napi::Promise::Deferred::New(info.Env());
    if (closed_) {
      deferred.Resolve(info.Env().Undefined());
      return deferred.Promise();
    }
    closed_ = true;
    expect();
    release(*parts_, [this, deferred, mailbox = parts_->mailbox] {
      mailbox->answer(settling([deferred, mailbox](Napi::Env env) {
        deferred.Resolve(env.Undefined());
        mailbox->close();
      }));
    });
    return deferred.Promise();
  }

  std::shared_ptr<Parts> parts_;
  bool closed_ = false;
};

Napi::Function VirtConnection::define(Napi::Env env) {
  using Self = VirtConnection;
  return DefineClass(
      env, "NativeVirtConnection",
      {
          InstanceMethod<&Self::hostname>("hostname"),
          InstanceMethod<&Self::daemonVersion>("daemonVersion"),
          InstanceMethod<&Self::driver>("driver"),
          InstanceMethod<&Self::hypervisorVersion>("hypervisorVersion"),
          InstanceMethod<&Self::isAlive>("isAlive"),
          InstanceMethod<&Self::capabilities>("capabilities"),
          InstanceMethod<&Self::volumePath>("volumePath"),
          InstanceMethod<&Self::poolTargetPath>("poolTargetPath"),
          InstanceMethod<&Self::secretValue>("secretValue"),
          InstanceMethod<&Self::listDomains>("listDomains"),
          InstanceMethod<&Self::lookupDomain>("lookupDomain"),
          InstanceMethod<&Self::domainXml>("domainXml"),
          InstanceMethod<&Self::defineDomain>("defineDomain"),
          InstanceMethod<&Self::createDomain>("createDomain"),
          InstanceMethod<&Self::createDomainXml>("createDomainXml"),
          InstanceMethod<&Self::destroyDomain>("destroyDomain"),
          InstanceMethod<&Self::shutdownDomain>("shutdownDomain"),
          InstanceMethod<&Self::suspendDomain>("suspendDomain"),
          InstanceMethod<&Self::resumeDomain>("resumeDomain"),
          InstanceMethod<&Self::undefineDomain>("undefineDomain"),
          InstanceMethod<&Self::managedSaveRemove>("managedSaveRemove"),
          InstanceMethod<&Self::getMetadata>("getMetadata"),
          InstanceMethod<&Self::setMetadata>("setMetadata"),
          InstanceMethod<&Self::attachDevice>("attachDevice"),
          InstanceMethod<&Self::detachDevice>("detachDevice"),
          InstanceMethod<&Self::screenshot>("screenshot"),
          InstanceMethod<&Self::backupBegin>("backupBegin"),
          InstanceMethod<&Self::backupXml>("backupXml"),
          InstanceMethod<&Self::abortJob>("abortJob"),
          InstanceMethod<&Self::jobStats>("jobStats"),
          InstanceMethod<&Self::blockJobType>("blockJobType"),
          InstanceMethod<&Self::blockPull>("blockPull"),
          InstanceMethod<&Self::blockJobAbort>("blockJobAbort"),
          InstanceMethod<&Self::blockJobInfo>("blockJobInfo"),
          InstanceMethod<&Self::blockInfo>("blockInfo"),
          InstanceMethod<&Self::blockResize>("blockResize"),
          InstanceMethod<&Self::setBlockThreshold>("setBlockThreshold"),
          InstanceMethod<&Self::diskErrors>("diskErrors"),
          InstanceMethod<&Self::listCheckpoints>("listCheckpoints"),
          InstanceMethod<&Self::checkpointXml>("checkpointXml"),
          InstanceMethod<&Self::createCheckpoint>("createCheckpoint"),
          InstanceMethod<&Self::deleteCheckpoint>("deleteCheckpoint"),
          InstanceMethod<&Self::agentSetTimeout>("agentSetTimeout"),
          InstanceMethod<&Self::agentPing>("agentPing"),
          InstanceMethod<&Self::agentCommand>("agentCommand"),
          InstanceMethod<&Self::fsFreeze>("fsFreeze"),
          InstanceMethod<&Self::fsThaw>("fsThaw"),
          InstanceMethod<&Self::close>("close"),
      });
}

// Tells the listener, once, that the connection is gone, whichever of the two it
// was that noticed; and everything that the domains do.
VirtEventSink eventSink(const std::shared_ptr<VirtConnection::Parts>& parts) {
  return [mailbox = parts->mailbox, weak = std::weak_ptr(parts),
          closed = std::make_shared<std::atomic<bool>>(false)](const VirtEvent& event) {
    if (std::holds_alternative<VirtClosed>(event) && closed->exchange(true)) return;
    mailbox->event([weak, event](Napi::Env env) {
      const auto parts = weak.lock();
      if (parts && !parts->listener.IsEmpty()) parts->listener.Call({toJs(env, event)});
    });
  };
}

Napi::Value virtConnect(const Napi::CallbackInfo& info, const std::shared_ptr<Napi::FunctionReference>& constructor) {
  const Napi::Env env = info.Env();
  if (!info[0].IsObject()) throw Napi::TypeError::New(env, "expected an options object");
  const auto options = info[0].As<Napi::Object>();
  VirtOpenOptions open = openOptionsFrom(options);
  const Napi::Value listener = options.Get("onEvent");

  auto parts = std::make_shared<VirtConnection::Parts>();
  parts->mailbox = Mailbox::open(env);
  if (listener.IsFunction()) parts->listener = Napi::Persistent(listener.As<Napi::Function>());

  const auto deferred = Napi::Promise::Deferred::New(env);
  parts->mailbox->expectAnswer();
  // The job holds nothing that must die on the JavaScript thread; the letter
  // below gets the parts from this holder, which lives until it is read.
  auto* holder = new std::shared_ptr<VirtConnection::Parts>(parts);
  parts->work->post([deferred, holder, constructor_of = constructor.get(), open = std::move(open),
                     sink = eventSink(parts), connections = parts->connections, mailbox = parts->mailbox](bool) {
    std::optional<NativeError> error;
    try {
      connections->work = std::make_unique<VirtLink>(open, sink, false);
      connections->rescue = std::make_unique<VirtLink>(open, sink, true);
    } catch (const NativeError& failure) {
      error.emplace(failure);
    } catch (const std::exception& failure) {
      error.emplace("E_INTERNAL", failure.what());
    }
    mailbox->answer([deferred, holder, constructor_of, error](Napi::Env env) {
      const std::unique_ptr<std::shared_ptr<VirtConnection::Parts>> parts(holder);
      if (!error) {
        deferred.Resolve(constructor_of->New({Napi::External<std::shared_ptr<VirtConnection::Parts>>::New(env, holder)}));
        return;
      }
      deferred.Reject(toJsError(env, *error).Value());
      VirtConnection::release(**parts, [] {});
      (*parts)->mailbox->close();
    });
  });
  return deferred.Promise();
}

}  // namespace

void initVirt(Napi::Env env, Napi::Object exports) {
  const auto constructor =
      std::make_shared<Napi::FunctionReference>(Napi::Persistent(VirtConnection::define(env)));
  constructor->SuppressDestruct();
  exports.Set("virtConnect", Napi::Function::New(env, [constructor](const Napi::CallbackInfo& info) {
                return virtConnect(info, constructor);
              }));
  exports.Set("virtLibraryVersion", Napi::Function::New(env, [](const Napi::CallbackInfo& info) -> Napi::Value {
                unsigned long version = 0;
                virGetVersion(&version, nullptr, nullptr);
                return Napi::Number::New(info.Env(), static_cast<double>(version));
              }));
}

}  // namespace virtvault
