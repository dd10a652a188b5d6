// libvirt's event loop on a thread of its own.
#pragma once

namespace virtvault {

// Initializes libvirt and starts its event loop, once per process; must be
// called before a connection is opened. A registered loop has to run for as
// long as there are connections: keepalive answers pass through it, and so does
// the closing of their sockets. So the thread runs until the process ends.
// Without connections it rests in poll(), and it owns nothing that exit
// destroys. Throws E_LIBVIRT.
void startVirtEventLoop();

}  // namespace virtvault
