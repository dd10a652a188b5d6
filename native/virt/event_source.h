// The callbacks that one connection has registered with libvirt.
#pragma once

#include <libvirt/libvirt.h>

#include <vector>

#include "virt/events.h"

namespace virtvault {

// Confined to the thread that owns the connection; the callbacks run on the
// event thread and touch only the sink. Must be destroyed before the
// connection is closed: registered callbacks hold references to it.
class VirtEventSource {
 public:
  // What the driver does not offer (a test connection has few events) is left out.
  VirtEventSource(virConnectPtr connection, const VirtEventSink& sink, bool domain_events);
  ~VirtEventSource();
  VirtEventSource(const VirtEventSource&) = delete;
  VirtEventSource& operator=(const VirtEventSource&) = delete;

 private:
  void add(int event, virConnectDomainEventGenericCallback callback, const VirtEventSink& sink);

  virConnectPtr connection_;
  std::vector<int> ids_;
  bool watches_close_ = false;
};

}  // namespace virtvault
