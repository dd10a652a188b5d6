#include "virt/event_source.h"

#include <string>

namespace virtvault {
namespace {

std::string textOf(const char* text) { return text == nullptr ? std::string() : std::string(text); }

std::string uuidOf(virDomainPtr domain) {
  char uuid[VIR_UUID_STRING_BUFLEN] = "";
  return virDomainGetUUIDString(domain, uuid) < 0 ? std::string() : std::string(uuid);
}

// Nothing may escape into libvirt: an event that cannot be copied is lost, as
// it would be with a connection that died a moment earlier.
void tell(void* sink, VirtEvent event) noexcept {
  try {
    (*static_cast<VirtEventSink*>(sink))(std::move(event));
  } catch (...) {
  }
}

void freeSink(void* sink) { delete static_cast<VirtEventSink*>(sink); }

void onClose(virConnectPtr, int reason, void* sink) { tell(sink, VirtClosed{reason}); }

int onLifecycle(virConnectPtr, virDomainPtr domain, int event, int detail, void* sink) {
  tell(sink, VirtLifecycle{uuidOf(domain), textOf(virDomainGetName(domain)), event, detail});
  return 0;
}

void onJobCompleted(virConnectPtr, virDomainPtr domain, virTypedParameterPtr params, int count, void* sink) {
  int operation = 0, success = 0;
  const char* message = nullptr;
  virTypedParamsGetInt(params, count, VIR_DOMAIN_JOB_OPERATION, &operation);
  virTypedParamsGetBoolean(params, count, VIR_DOMAIN_JOB_SUCCESS, &success);
  virTypedParamsGetString(params, count, VIR_DOMAIN_JOB_ERRMSG, &message);
  tell(sink, VirtJobCompleted{uuidOf(domain), operation, success != 0, textOf(message)});
}

void onIoError(virConnectPtr, virDomainPtr domain, const char* path, const char* alias, int action, const char* reason,
               void* sink) {
  tell(sink, VirtIoError{uuidOf(domain), textOf(path), textOf(alias), action, textOf(reason)});
}

void onAgent(virConnectPtr, virDomainPtr domain, int state, int, void* sink) {
  tell(sink, VirtAgent{uuidOf(domain), state == VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED});
}

void onBlockJob(virConnectPtr, virDomainPtr domain, const char* disk, int type, int status, void* sink) {
  tell(sink, VirtBlockJob{uuidOf(domain), textOf(disk), type, status});
}

void onBlockThreshold(virConnectPtr, virDomainPtr domain, const char* device, const char*, unsigned long long threshold,
                      unsigned long long, void* sink) {
  tell(sink, VirtBlockThreshold{uuidOf(domain), textOf(device), threshold});
}

void onMetadata(virConnectPtr, virDomainPtr domain, int, const char* uri, void* sink) {
  tell(sink, VirtMetadata{uuidOf(domain), textOf(uri)});
}

}  // namespace

VirtEventSource::VirtEventSource(virConnectPtr connection, const VirtEventSink& sink, bool domain_events)
    : connection_(connection) {
  auto* copy = new VirtEventSink(sink);
  watches_close_ = virConnectRegisterCloseCallback(connection, onClose, copy, freeSink) == 0;
  if (!watches_close_) delete copy;
  if (!domain_events) return;
  add(VIR_DOMAIN_EVENT_ID_LIFECYCLE, VIR_DOMAIN_EVENT_CALLBACK(onLifecycle), sink);
  add(VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, VIR_DOMAIN_EVENT_CALLBACK(onJobCompleted), sink);
  add(VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, VIR_DOMAIN_EVENT_CALLBACK(onIoError), sink);
  add(VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, VIR_DOMAIN_EVENT_CALLBACK(onAgent), sink);
  add(VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, VIR_DOMAIN_EVENT_CALLBACK(onBlockJob), sink);
  add(VIR_DOMAIN_EVENT_ID_BLOCK_THRESHOLD, VIR_DOMAIN_EVENT_CALLBACK(onBlockThreshold), sink);
  add(VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, VIR_DOMAIN_EVENT_CALLBACK(onMetadata), sink);
}

VirtEventSource::~VirtEventSource() {
  for (const int id : ids_) virConnectDomainEventDeregisterAny(connection_, id);
  if (watches_close_) virConnectUnregisterCloseCallback(connection_, onClose);
}

void VirtEventSource::add(int event, virConnectDomainEventGenericCallback callback, const VirtEventSink& sink) {
  auto* copy = new VirtEventSink(sink);
  const int id = virConnectDomainEventRegisterAny(connection_, nullptr, event, callback, copy, freeSink);
  if (id < 0) {
    delete copy;
  } else {
    ids_.push_back(id);
  }
}

}  // namespace virtvault
