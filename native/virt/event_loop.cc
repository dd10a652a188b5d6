#include "virt/event_loop.h"

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <pthread.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "virt/virt_error.h"

namespace virtvault {
namespace {

// Without it libvirt prints every error on stderr.
void ignoreError(void*, virErrorPtr) {}

// An iteration waits for a descriptor or a timer; one that never fires keeps it
// from having nothing at all to wait for.
void idle(int, void*) {}

void runLoop() {
  while (true) {
    // Fails only where no implementation is registered; never spin on it.
    if (virEventRunDefaultImpl() < 0) ::usleep(100'000);
  }
}

bool start() {
  virSetErrorFunc(nullptr, ignoreError);
  virtChecked(virInitialize(), "cannot initialize libvirt");
  virtChecked(virEventRegisterDefaultImpl(), "cannot register libvirt's event loop");
  virtChecked(virEventAddTimeout(-1, idle, nullptr, nullptr), "cannot add a timer to libvirt's event loop");
  std::thread thread(runLoop);
  ::pthread_setname_np(thread.native_handle(), "virt-events");
  thread.detach();
  return true;
}

}  // namespace

void startVirtEventLoop() {
  static const bool started = start();
  static_cast<void>(started);
}

}  // namespace virtvault
