#include "nbd/handle.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <csignal>
#include <limits>

namespace virtvault::nbd {

namespace {

// A peer that vanished without a word is noticed after about a minute.
constexpr int kKeepIdleSeconds = 20;
constexpr int kKeepIntervalSeconds = 10;
constexpr int kKeepProbes = 3;
constexpr int kUserTimeoutMs = 60'000;

// The NBD specification allows no larger minimum.
constexpr std::int64_t kLargestMinimumBlock = 64 << 10;
// libnbd sends no longer payload.
constexpr std::uint32_t kLargestRequest = 64 << 20;
// What every server takes where it names no limit.
constexpr std::uint32_t kUnstatedMaximum = 32 << 20;
constexpr std::size_t kMaxListed = 1024;

void check(int result, std::string_view what) {
  if (result == -1) throw lastError(what);
}

void keepAlive(int fd) noexcept {
  // Fails harmlessly on a unix socket.
  const int on = 1;
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &kKeepIdleSeconds, sizeof kKeepIdleSeconds);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &kKeepIntervalSeconds, sizeof kKeepIntervalSeconds);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &kKeepProbes, sizeof kKeepProbes);
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUserTimeoutMs, sizeof kUserTimeoutMs);
}

// Looks `host` up with a deadline, which getaddrinfo (inside libnbd) has not.
// libnbd needs the name itself, to check the certificate, and looks it up
// again; this call only keeps a dead resolver from holding the thread.
void probeName(const std::string& host, const std::string& port, TimePoint deadline) {
  // On a timeout glibc may still be writing to the request: then it is leaked.
  auto* names = new std::string[2]{host, port};
  auto* request = new gaicb{};
  request->ar_name = names[0].c_str();
  request->ar_service = names[1].c_str();
  gaicb* list[] = {request};
  int result = ::getaddrinfo_a(GAI_NOWAIT, list, 1, nullptr);
  while (result == 0 && ::gai_error(request) == EAI_INPROGRESS) {
    const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - Clock::now()).count();
    if (left <= 0) {
      if (::gai_cancel(request) == EAI_CANCELED) break;
      throw NativeError("E_TIMEOUT", "no answer from the name service for " + host);
    }
    const timespec timeout{static_cast<time_t>(left / 1'000'000'000), static_cast<long>(left % 1'000'000'000)};
    ::gai_suspend(list, 1, &timeout);
  }
  if (result == 0) result = ::gai_error(request);
  if (request->ar_result != nullptr) ::freeaddrinfo(request->ar_result);
  delete request;
  delete[] names;
  if (result == EAI_CANCELED) throw NativeError("E_TIMEOUT", "no answer from the name service for " + host);
  if (result != 0) throw NativeError("E_NBD", host + ": " + ::gai_strerror(result));
}

bool isPowerOfTwo(std::int64_t value) { return value > 0 && std::has_single_bit(static_cast<std::uint64_t>(value)); }

}  // namespace

std::string Address::name() const {
  if (!socket.empty()) return socket;
  if (!host.empty()) return host + ":" + port;
  if (!uri.empty()) return uri;
  return command.empty() ? "nowhere" : command.front();
}

NativeError lastError(std::string_view what, const char* code) {
  const char* text = nbd_get_error();
  const int number = nbd_get_errno();
  if (code == nullptr) {
    // libnbd gives no number for most of what a server gets wrong, nor for a
    // connection or a TLS session that breaks off; only the texts differ.
    const std::string_view detail = text != nullptr ? text : "";
    const bool is_cut = detail.find("disconnected") != detail.npos || detail.find("gnutls") != detail.npos ||
                        detail.find("TLS") != detail.npos;
    const bool is_nonsense = number == EPROTO || number == EINVAL || number == 0;
    code = is_nonsense && !is_cut ? "E_NBD_PROTOCOL" : "E_NBD";
  }
  return NativeError(code, std::string(what) + ": " + (text != nullptr ? text : "no detail"), number);
}

Wakeup::Wakeup() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (fd_.get() < 0) throwErrno("eventfd");
}

void Wakeup::notify() noexcept {
  const std::uint64_t one = 1;
  // Fails only when the counter is full, which wakes just as well.
  [[maybe_unused]] const auto written = ::write(fd_.get(), &one, sizeof one);
}

void Wakeup::drain() noexcept {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto got = ::read(fd_.get(), &count, sizeof count);
}

void Control::abort() noexcept {
  aborted.store(true);
  guard.cut();
  wakeup.notify();
}

Handle::Handle(Control& control) : control_(control), handle_(nbd_create()) {
  if (!handle_) throw lastError("libnbd");
}

Handle::~Handle() { close(); }

void Handle::configure(const ConnectOptions& options, bool list) {
  nbd_handle* h = handle_.get();
  const Address& address = options.address;
  check(nbd_set_export_name(h, options.export_name.c_str()), "export name");
  for (const auto& context : options.contexts) check(nbd_add_meta_context(h, context.c_str()), "meta context");
  for (const auto& context : options.optional_contexts) check(nbd_add_meta_context(h, context.c_str()), "meta context");
#if LIBNBD_HAVE_NBD_SET_PREAD_INITIALIZE
  // Every byte of a read is accounted for (see Coverage), so clearing the buffer first is waste.
  check(nbd_set_pread_initialize(h, false), "libnbd");
#endif
  // A URI brings its own export name unless the caller gives one, which then has to be set later.
  if (list || (!address.uri.empty() && !options.export_name.empty())) check(nbd_set_opt_mode(h, true), "libnbd");
  if (!address.tls) return;
  const TlsOptions& tls = *address.tls;
  if (nbd_supports_tls(h) != 1) throw NativeError("E_UNSUPPORTED", "this libnbd was built without TLS");
  // libnbd 1.14 without certificates of its own skips the check that it was asked for.
  if (tls.verify_peer && tls.certificates.empty() && tls.psk_file.empty()) {
    throw NativeError("E_CONFIG", "TLS without certificates or keys would believe any server");
  }
  // Never "allow": a server (or somebody on the way) could then talk us out of it.
  check(nbd_set_tls(h, LIBNBD_TLS_REQUIRE), "TLS");
  check(nbd_set_tls_verify_peer(h, tls.verify_peer), "TLS");
  if (!tls.certificates.empty()) check(nbd_set_tls_certificates(h, tls.certificates.c_str()), "TLS certificates");
  if (!tls.psk_file.empty()) check(nbd_set_tls_psk_file(h, tls.psk_file.c_str()), "TLS keys");
  if (!tls.username.empty()) check(nbd_set_tls_username(h, tls.username.c_str()), "TLS user name");
}

void Handle::start(const Address& address, TimePoint deadline) {
  nbd_handle* h = handle_.get();
  const std::string name = address.name();
  int result = -1;
  if (!address.socket.empty()) {
    result = nbd_aio_connect_unix(h, address.socket.c_str());
  } else if (!address.host.empty()) {
    probeName(address.host, address.port, deadline);
    result = nbd_aio_connect_tcp(h, address.host.c_str(), address.port.c_str());
  } else if (!address.uri.empty()) {
    result = nbd_aio_connect_uri(h, address.uri.c_str());
  } else {
    std::vector<char*> argv;
    for (const auto& word : address.command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    // Node marks its standard streams close-on-exec, and a program without a
    // stderr finds its first file there.
    const int flags = ::fcntl(STDERR_FILENO, F_GETFD);
    if (flags >= 0) ::fcntl(STDERR_FILENO, F_SETFD, flags & ~FD_CLOEXEC);
    result = nbd_aio_connect_command(h, argv.data());
    if (flags >= 0) ::fcntl(STDERR_FILENO, F_SETFD, flags);
    is_command_ = result == 0;
  }
  if (result == -1) throw lastError(name, "E_NBD");
}

template <class Going>
void Handle::driveWhile(Going going, TimePoint deadline, std::string_view what) {
  while (going(handle_.get()) == 1) {
    // The socket may change while several addresses are tried.
    const int fd = nbd_aio_get_fd(handle_.get());
    if (fd >= 0) control_.guard.watch(fd);
    if (!step(deadline)) throw NativeError("E_TIMEOUT", std::string(what) + ": the server does not finish the handshake");
  }
}

void Handle::negotiate(const ConnectOptions& options, TimePoint deadline, bool list) {
  const std::string name = options.address.name();
  configure(options, list);
  start(options.address, deadline);
  driveWhile(nbd_aio_is_connecting, deadline, name);
  if (!isUsable()) throw NativeError("E_NBD", name + ": the server ended the connection during the handshake");
  const int fd = nbd_aio_get_fd(handle_.get());
  if (fd >= 0) {
    control_.guard.watch(fd);
    keepAlive(fd);
  }
}

int Handle::sendOption(TimePoint deadline, const std::string& name, const Option& option) {
  // Shared with the callback, which may run as late as in nbd_close().
  struct Answer {
    bool is_done = false;
    int error = 0;
  };
  auto answer = std::make_shared<Answer>();
  const nbd_completion_callback done{
      .callback =
          [](void* user, int* error) {
            auto& shared = *static_cast<std::shared_ptr<Answer>*>(user);
            shared->is_done = true;
            shared->error = *error;
            return 1;
          },
      .user_data = new std::shared_ptr<Answer>(answer),
      .free = [](void* user) { delete static_cast<std::shared_ptr<Answer>*>(user); }};
  check(option(done), name);
  driveWhile([&answer](nbd_handle* h) { return !answer->is_done && nbd_aio_is_connecting(h) == 1 ? 1 : 0; }, deadline,
             name);
  return answer->is_done ? answer->error : 0;
}

void Handle::connect(const ConnectOptions& options, TimePoint deadline) {
  negotiate(options, deadline, false);
  if (nbd_aio_is_negotiating(handle_.get()) != 1) return;
  const std::string name = options.address.name();
  check(nbd_set_export_name(handle_.get(), options.export_name.c_str()), "export name");
  const int error = sendOption(deadline, name, [this](nbd_completion_callback done) {
    return nbd_aio_opt_go(handle_.get(), done);
  });
  driveWhile(nbd_aio_is_connecting, deadline, name);
  if (error != 0 || nbd_aio_is_ready(handle_.get()) != 1) {
    throw NativeError("E_NBD", name + ": the server refuses the export \"" + options.export_name + "\"", error);
  }
}

std::vector<ListedExport> Handle::list(const ConnectOptions& options, TimePoint deadline) {
  const std::string name = options.address.name();
  negotiate(options, deadline, true);
  if (nbd_aio_is_negotiating(handle_.get()) != 1) {
    throw NativeError("E_UNSUPPORTED", name + ": this server cannot list its exports");
  }
  struct Listing {
    std::vector<ListedExport> exports;
    bool is_overfull = false;
  };
  auto listing = std::make_shared<Listing>();
  const int error = sendOption(deadline, name, [this, &listing](nbd_completion_callback done) {
    const nbd_list_callback each{
        .callback =
            [](void* user, const char* export_name, const char* description) {
              auto& shared = **static_cast<std::shared_ptr<Listing>*>(user);
              if (shared.exports.size() >= kMaxListed) {
                shared.is_overfull = true;
              } else {
                shared.exports.push_back({export_name, description, std::nullopt});
              }
              return 0;
            },
        .user_data = new std::shared_ptr<Listing>(listing),
        .free = [](void* user) { delete static_cast<std::shared_ptr<Listing>*>(user); }};
    return nbd_aio_opt_list(handle_.get(), each, done);
  });
  if (error != 0) throw NativeError("E_NBD", name + ": the server does not list its exports", error);
  if (listing->is_overfull) throw NativeError("E_NBD_PROTOCOL", name + ": the server names too many exports");
  for (auto& item : listing->exports) {
    if (nbd_aio_is_negotiating(handle_.get()) != 1) break;
    check(nbd_set_export_name(handle_.get(), item.name.c_str()), "export name");
    const int refused = sendOption(deadline, name, [this](nbd_completion_callback done) {
      return nbd_aio_opt_info(handle_.get(), done);
    });
    if (refused != 0) continue;
    const std::int64_t size = nbd_get_size(handle_.get());
    if (size >= 0 && static_cast<std::uint64_t>(size) <= kMaxSize) item.size = static_cast<std::uint64_t>(size);
  }
  disconnect(std::min(deadline, Clock::now() + Milliseconds(1000)));
  return std::move(listing->exports);
}

bool Handle::isUsable() const noexcept {
  nbd_handle* h = handle_.get();
  return h != nullptr &&
         (nbd_aio_is_ready(h) == 1 || nbd_aio_is_processing(h) == 1 || nbd_aio_is_negotiating(h) == 1);
}

bool Handle::step(TimePoint deadline) {
  nbd_handle* h = handle_.get();
  if (control_.aborted.load()) throw NativeError("E_INTERRUPTED", "NBD: interrupted");
  const auto now = Clock::now();
  if (now >= deadline) return false;

  const unsigned direction = nbd_aio_get_direction(h);
  const bool reads = (direction & LIBNBD_AIO_DIRECTION_READ) != 0;
  const bool writes = (direction & LIBNBD_AIO_DIRECTION_WRITE) != 0;
  pollfd fds[2] = {{nbd_aio_get_fd(h), static_cast<short>((reads ? POLLIN : 0) | (writes ? POLLOUT : 0)), 0},
                   {control_.wakeup.fd(), POLLIN, 0}};
  // Never longer than a minute at once, which keeps the number in range.
  const auto left = std::min<std::int64_t>(
      std::chrono::ceil<Milliseconds>(deadline - now).count(), 60'000);
  const int ready = ::poll(fds, 2, static_cast<int>(left));
  if (ready < 0 && errno != EINTR) throwErrno("poll");
  if (ready <= 0) return true;
  if (fds[1].revents != 0) control_.wakeup.drain();
  if (control_.aborted.load()) throw NativeError("E_INTERRUPTED", "NBD: interrupted");

  const auto happened = fds[0].revents;
  if (happened == 0) return true;
  const bool broken = (happened & (POLLHUP | POLLERR)) != 0;
  int result = 0;
  control_.guard.enter(deadline);
  // Never both: the first may change the state and make the second invalid.
  if (reads && ((happened & POLLIN) != 0 || broken)) {
    result = nbd_aio_notify_read(h);
  } else if (writes && ((happened & POLLOUT) != 0 || broken)) {
    result = nbd_aio_notify_write(h);
  } else {
    control_.guard.leave();
    throw NativeError("E_NBD", "the server closed the connection", ENOTCONN);
  }
  control_.guard.leave();
  if (control_.aborted.load()) throw NativeError("E_INTERRUPTED", "NBD: interrupted");
  if (control_.guard.expired()) throw NativeError("E_TIMEOUT", "the NBD server sends without end");
  if (result == -1) throw lastError("NBD");
  return true;
}

ExportInfo Handle::describe(const ConnectOptions& options) const {
  nbd_handle* h = handle_.get();
  const std::string name = options.address.name();
  const auto refuse = [&name](const std::string& what) -> NativeError {
    return NativeError("E_NBD_PROTOCOL", name + ": " + what);
  };
  ExportInfo info;

  const std::int64_t size = nbd_get_size(h);
  if (size < 0) throw refuse("the server names a size that makes no sense");
  info.size = static_cast<std::uint64_t>(size);
  if (info.size > kMaxSize) throw refuse("the server names an impossible size, " + std::to_string(size) + " bytes");

  const std::int64_t minimum = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
  const std::int64_t preferred = nbd_get_block_size(h, LIBNBD_SIZE_PREFERRED);
  const std::int64_t maximum = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);
  // Zero means that the server names none.
  if (minimum != 0 && (!isPowerOfTwo(minimum) || minimum > kLargestMinimumBlock)) {
    throw refuse("impossible minimum block size " + std::to_string(minimum));
  }
  if (preferred != 0 && (!isPowerOfTwo(preferred) || preferred < minimum)) {
    throw refuse("impossible preferred block size " + std::to_string(preferred));
  }
  if (minimum != 0) info.minimum_block = static_cast<std::uint32_t>(minimum);
  if (maximum < 0 || (maximum != 0 && maximum < static_cast<std::int64_t>(info.minimum_block))) {
    throw refuse("impossible maximum block size " + std::to_string(maximum));
  }
  if (preferred != 0) {
    info.preferred_block = static_cast<std::uint32_t>(std::min<std::int64_t>(preferred, kUnstatedMaximum));
  }
  const auto limit = maximum == 0 ? kUnstatedMaximum
                                  : static_cast<std::uint32_t>(std::min<std::int64_t>(maximum, kLargestRequest));
  info.maximum_block = limit / info.minimum_block * info.minimum_block;

  info.multi_conn = nbd_can_multi_conn(h) == 1;
  info.read_only = nbd_is_read_only(h) != 0;
  info.can_zero = nbd_can_zero(h) == 1;
  info.can_trim = nbd_can_trim(h) == 1;
  info.can_flush = nbd_can_flush(h) == 1;
  if (options.writable && info.read_only) throw NativeError("E_NBD", name + ": the export is read-only");

  for (const auto& context : options.contexts) {
    if (nbd_can_meta_context(h, context.c_str()) != 1) {
      throw refuse("the server does not grant the meta context " + context);
    }
    info.contexts.push_back(context);
  }
  for (const auto& context : options.optional_contexts) {
    if (nbd_can_meta_context(h, context.c_str()) == 1) info.contexts.push_back(context);
  }
  return info;
}

void Handle::disconnect(TimePoint deadline) noexcept {
  nbd_handle* h = handle_.get();
  if (h == nullptr) return;
  try {
    if (nbd_aio_is_ready(h) == 1 && nbd_aio_disconnect(h, 0) == 0) {
      while (nbd_aio_is_closed(h) != 1 && nbd_aio_is_dead(h) != 1 && step(deadline)) {
      }
    } else if (nbd_aio_is_negotiating(h) == 1 && nbd_aio_opt_abort(h) == 0) {
      while (nbd_aio_is_closed(h) != 1 && nbd_aio_is_dead(h) != 1 && step(deadline)) {
      }
    }
  } catch (const std::exception&) {
    // It is being closed anyway.
  }
  close();
}

void Handle::close() noexcept {
  if (!handle_) return;
  // nbd_close waits for the program to end, however long that takes.
  if (is_command_) nbd_kill_subprocess(handle_.get(), SIGKILL);
  handle_.reset();
}

}  // namespace virtvault::nbd
