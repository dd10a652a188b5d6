#include "virt/link.h"

#include <libvirt/virterror.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "virt/event_loop.h"
#include "virt/virt_error.h"

namespace virtvault {
namespace {

using StorageVolHandle = std::unique_ptr<virStorageVol, Closer<virStorageVolFree>>;
using VirtSecretHandle = std::unique_ptr<virSecret, Closer<virSecretFree>>;
using StoragePoolHandle = std::unique_ptr<virStoragePool, Closer<virStoragePoolFree>>;

// A peer that answers nothing is noticed after interval * (count + 1) seconds.
constexpr int kKeepAliveSeconds = 5;
constexpr unsigned kKeepAliveCount = 5;

const std::optional<std::string>* answerTo(const virConnectCredential& question, const VirtOpenOptions& options) {
  switch (question.type) {
    case VIR_CRED_AUTHNAME:
    case VIR_CRED_ECHOPROMPT:
      return &options.username;
    case VIR_CRED_PASSPHRASE:
    case VIR_CRED_NOECHOPROMPT:
      return &options.passphrase;
    default:
      return nullptr;
  }
}

// Runs inside open, with answers collected beforehand: nobody is asked. Without
// an answer it fails, and so does the opening, with VIR_ERR_AUTH_FAILED.
int answerCredentials(virConnectCredentialPtr questions, unsigned count, void* data) {
  const auto& options = *static_cast<const VirtOpenOptions*>(data);
  for (unsigned i = 0; i < count; i++) {
    const auto* answer = answerTo(questions[i], options);
    if (answer == nullptr || !answer->has_value()) return -1;
    questions[i].result = ::strdup((*answer)->c_str());
    if (questions[i].result == nullptr) return -1;
    questions[i].resultlen = static_cast<unsigned>((*answer)->size());
  }
  return 0;
}

VirtConnectHandle openConnection(const VirtOpenOptions& options) {
  // All types are offered also without answers: an authfile in the URI gives
  // some only where their types are offered.
  int types[] = {VIR_CRED_AUTHNAME, VIR_CRED_ECHOPROMPT, VIR_CRED_PASSPHRASE, VIR_CRED_NOECHOPROMPT};
  virConnectAuth auth{types, std::size(types), answerCredentials, const_cast<VirtOpenOptions*>(&options)};
  const unsigned flags = options.read_only ? VIR_CONNECT_RO : 0;
  return VirtConnectHandle(
      virtChecked(virConnectOpenAuth(options.uri.c_str(), &auth, flags), "cannot connect to " + options.uri));
}

}  // namespace

std::string takeVirtString(char* text) {
  const std::unique_ptr<char, Closer<std::free>> owner(text);
  return std::string(text);
}

VirtLink::VirtLink(const VirtOpenOptions& options, const VirtEventSink& sink, bool domain_events) {
  startVirtEventLoop();
  connection_ = openConnection(options);
  // Not every driver has a peer to keep alive; that is no failure.
  static_cast<void>(virConnectSetKeepAlive(connection_.get(), kKeepAliveSeconds, kKeepAliveCount));
  events_ = std::make_unique<VirtEventSource>(connection_.get(), sink, domain_events);
}

std::string VirtLink::hostname() const {
  return takeVirtString(virtChecked(virConnectGetHostname(connection_.get()), "cannot ask for the host's name"));
}

std::uint64_t VirtLink::daemonVersion() const {
  unsigned long version = 0;
  virtChecked(virConnectGetLibVersion(connection_.get(), &version), "cannot ask for libvirt's version");
  return version;
}

std::string VirtLink::driver() const {
  return virtChecked(virConnectGetType(connection_.get()), "cannot ask for the driver");
}

std::uint64_t VirtLink::hypervisorVersion() const {
  unsigned long version = 0;
  virtChecked(virConnectGetVersion(connection_.get(), &version), "cannot ask for the hypervisor's version");
  return version;
}

bool VirtLink::isAlive() const { return virConnectIsAlive(connection_.get()) == 1; }

std::string VirtLink::capabilities() const {
  return takeVirtString(
      virtChecked(virConnectGetCapabilities(connection_.get()), "cannot ask for the host's capabilities"));
}

std::string VirtLink::volumePath(const std::string& pool, const std::string& volume) const {
  const StoragePoolHandle owner(virtChecked(virStoragePoolLookupByName(connection_.get(), pool.c_str()),
                                            "cannot find the storage pool " + pool));
  const StorageVolHandle found(
      virtChecked(virStorageVolLookupByName(owner.get(), volume.c_str()), "cannot find the volume " + volume));
  return takeVirtString(virtChecked(virStorageVolGetPath(found.get()), "cannot ask for the path of " + volume));
}

std::string VirtLink::poolTargetPath(const std::string& pool) const {
  const StoragePoolHandle found(virtChecked(virStoragePoolLookupByName(connection_.get(), pool.c_str()),
                                            "cannot find the storage pool " + pool));
  const std::string xml =
      takeVirtString(virtChecked(virStoragePoolGetXMLDesc(found.get(), 0), "cannot describe the storage pool " + pool));
  // libvirt wrote this document: <target> is the only element of its name, and
  // <path> its first child with text.
  const auto target = xml.find("<target>");
  const auto begin = target == std::string::npos ? target : xml.find("<path>", target);
  const auto end = begin == std::string::npos ? begin : xml.find("</path>", begin);
  if (end == std::string::npos) throw NativeError("E_NOT_FOUND", "the storage pool " + pool + " has no target path");
  const auto text = begin + std::strlen("<path>");
  std::string path = xml.substr(text, end - text);
  if (path.find('&') != std::string::npos) {
    throw NativeError("E_UNSUPPORTED", "the target path of the storage pool " + pool + " has a character XML escapes");
  }
  return path;
}

VirtSecretBytes VirtLink::secretValue(const std::string& uuid) const {
  const VirtSecretHandle found(
      virtChecked(virSecretLookupByUUIDString(connection_.get(), uuid.c_str()), "cannot find the secret " + uuid));
  std::size_t size = 0;
  const std::unique_ptr<unsigned char, Closer<std::free>> value(
      virtChecked(virSecretGetValue(found.get(), &size, 0), "cannot ask for the value of the secret " + uuid));
  VirtSecretBytes secret{{value.get(), value.get() + size}};
  ::explicit_bzero(value.get(), size);
  return secret;
}

VirtDomainHandle VirtLink::domain(const std::string& uuid) const {
  return VirtDomainHandle(
      virtChecked(virDomainLookupByUUIDString(connection_.get(), uuid.c_str()), "cannot find the domain " + uuid));
}

}  // namespace virtvault
