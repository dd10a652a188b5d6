// What libvirt tells about its domains, as plain values.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <variant>

namespace virtvault {

struct VirtClosed {
  int reason;
};
struct VirtLifecycle {
  std::string uuid, name;
  int event, detail;
};
struct VirtJobCompleted {
  std::string uuid;
  int operation;
  bool success;
  std::string message;
};
struct VirtIoError {
  std::string uuid, path, alias;
  int action;
  std::string reason;
};
struct VirtAgent {
  std::string uuid;
  bool connected;
};
struct VirtBlockJob {
  std::string uuid, disk;
  int type, status;
};
struct VirtBlockThreshold {
  std::string uuid, device;
  std::uint64_t threshold;
};
struct VirtMetadata {
  std::string uuid, uri;
};

using VirtEvent =
    std::variant<VirtClosed, VirtLifecycle, VirtJobCompleted, VirtIoError, VirtAgent, VirtBlockJob, VirtBlockThreshold,
                 VirtMetadata>;

// Called on libvirt's event thread: hand over and return, never block or throw.
using VirtEventSink = std::function<void(VirtEvent)>;

}  // namespace virtvault
