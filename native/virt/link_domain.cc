// Domains: finding, describing, starting, stopping, metadata, devices.
#include <libvirt/virterror.h>

#include <algorithm>
#include <cstdlib>
#include <span>
#include <string>

#include "virt/link.h"
#include "virt/virt_error.h"

namespace virtvault {
namespace {

using StreamHandle = std::unique_ptr<virStream, Closer<virStreamFree>>;

// A screen is a few MiB; more than this is not one.
constexpr std::size_t kMaxScreenshotBytes = 64u << 20;

std::string uuidOf(virDomainPtr domain) {
  char uuid[VIR_UUID_STRING_BUFLEN] = "";
  virtChecked(virDomainGetUUIDString(domain, uuid), "cannot ask for a domain's UUID");
  return uuid;
}

VirtDomainInfo infoOf(virDomainPtr domain) {
  VirtDomainInfo info;
  info.uuid = uuidOf(domain);
  info.name = virtChecked(virDomainGetName(domain), "cannot ask for a domain's name");
  const std::string what = "cannot ask for the state of " + info.name;
  virtChecked(virDomainGetState(domain, &info.state, &info.reason, 0), what);
  // (unsigned)-1 where it is not running. The handle caches it from the lookup.
  info.id = static_cast<int>(virDomainGetID(domain));
  info.persistent = virtChecked(virDomainIsPersistent(domain), what) == 1;
  // A transient domain can have none, and some drivers refuse the question.
  info.has_managed_save = info.persistent && virDomainHasManagedSaveImage(domain, 0) == 1;
  return info;
}

bool looksLikeUuid(const std::string& text) {
  const auto digits = std::count_if(text.begin(), text.end(), [](unsigned char c) { return std::isxdigit(c) != 0; });
  return digits == 32 && std::all_of(text.begin(), text.end(),
                                     [](unsigned char c) { return c == '-' || std::isxdigit(c) != 0; });
}

unsigned affected(virDomainPtr domain) {
  const bool active = virtChecked(virDomainIsActive(domain), "cannot ask whether a domain runs") == 1;
  const bool persistent = virtChecked(virDomainIsPersistent(domain), "cannot ask whether a domain is persistent") == 1;
  unsigned flags = 0;
  if (active) flags |= VIR_DOMAIN_AFFECT_LIVE;
  if (persistent) flags |= VIR_DOMAIN_AFFECT_CONFIG;
  return flags;
}

}  // namespace

std::vector<VirtDomainInfo> VirtLink::listDomains() const {
  virDomainPtr* list = nullptr;
  const int count = virtChecked(virConnectListAllDomains(connection_.get(), &list, 0), "cannot list domains");
  const std::unique_ptr<virDomainPtr, Closer<std::free>> owner(list);
  std::vector<VirtDomainHandle> domains;
  domains.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; i++) domains.emplace_back(list[i]);

  std::vector<VirtDomainInfo> infos;
  infos.reserve(domains.size());
  for (const auto& domain : domains) {
    try {
      infos.push_back(infoOf(domain.get()));
    } catch (const NativeError& error) {
      // It went away since it was listed.
      if (error.virtCode() != VIR_ERR_NO_DOMAIN) throw;
    }
  }
  return infos;
}

VirtDomainInfo VirtLink::lookupDomain(const std::string& name_or_uuid) const {
  if (looksLikeUuid(name_or_uuid)) {
    const VirtDomainHandle found(virDomainLookupByUUIDString(connection_.get(), name_or_uuid.c_str()));
    if (found) return infoOf(found.get());
    if (lastVirtCode() != VIR_ERR_NO_DOMAIN) throwVirt("cannot find the domain " + name_or_uuid);
  }
  // A name may look like a UUID.
  const VirtDomainHandle found(virtChecked(virDomainLookupByName(connection_.get(), name_or_uuid.c_str()),
                                           "cannot find the domain " + name_or_uuid));
  return infoOf(found.get());
}

std::string VirtLink::domainXml(const std::string& uuid, unsigned flags) const {
  return takeVirtString(
      virtChecked(virDomainGetXMLDesc(domain(uuid).get(), flags), "cannot describe the domain " + uuid));
}

VirtDomainInfo VirtLink::defineDomain(const std::string& xml, unsigned flags) const {
  const VirtDomainHandle defined(
      virtChecked(virDomainDefineXMLFlags(connection_.get(), xml.c_str(), flags), "cannot define the domain"));
  return infoOf(defined.get());
}

void VirtLink::createDomain(const std::string& uuid, unsigned flags) const {
  virtChecked(virDomainCreateWithFlags(domain(uuid).get(), flags), "cannot start the domain " + uuid);
}

VirtDomainInfo VirtLink::createDomainXml(const std::string& xml, unsigned flags) const {
  const VirtDomainHandle created(
      virtChecked(virDomainCreateXML(connection_.get(), xml.c_str(), flags), "cannot start the transient domain"));
  return infoOf(created.get());
}

void VirtLink::destroyDomain(const std::string& uuid, unsigned flags) const {
  virtChecked(virDomainDestroyFlags(domain(uuid).get(), flags), "cannot stop the domain " + uuid);
}

void VirtLink::shutdownDomain(const std::string& uuid) const {
  virtChecked(virDomainShutdown(domain(uuid).get()), "cannot shut down the domain " + uuid);
}

void VirtLink::suspendDomain(const std::string& uuid) const {
  virtChecked(virDomainSuspend(domain(uuid).get()), "cannot pause the domain " + uuid);
}

void VirtLink::resumeDomain(const std::string& uuid) const {
  virtChecked(virDomainResume(domain(uuid).get()), "cannot resume the domain " + uuid);
}

void VirtLink::undefineDomain(const std::string& uuid, unsigned flags) const {
  virtChecked(virDomainUndefineFlags(domain(uuid).get(), flags), "cannot undefine the domain " + uuid);
}

void VirtLink::managedSaveRemove(const std::string& uuid) const {
  virtChecked(virDomainManagedSaveRemove(domain(uuid).get(), 0), "cannot remove the saved state of " + uuid);
}

std::optional<std::string> VirtLink::getMetadata(const std::string& uuid, const std::string& ns) const {
  const auto found = domain(uuid);
  char* xml = virDomainGetMetadata(found.get(), VIR_DOMAIN_METADATA_ELEMENT, ns.c_str(), 0);
  if (xml != nullptr) return takeVirtString(xml);
  if (lastVirtCode() == VIR_ERR_NO_DOMAIN_METADATA) return std::nullopt;
  throwVirt("cannot read the metadata of the domain " + uuid);
}

void VirtLink::setMetadata(const std::string& uuid, const std::string& ns, const std::string& prefix,
                           const std::optional<std::string>& xml) const {
  const auto found = domain(uuid);
  const unsigned flags = affected(found.get());
  const int result = virDomainSetMetadata(found.get(), VIR_DOMAIN_METADATA_ELEMENT, xml ? xml->c_str() : nullptr,
                                          xml ? prefix.c_str() : nullptr, ns.c_str(), flags);
  if (result == 0) return;
  // Removing what is not there.
  if (!xml && lastVirtCode() == VIR_ERR_NO_DOMAIN_METADATA) return;
  throwVirt("cannot write the metadata of the domain " + uuid);
}

void VirtLink::attachDevice(const std::string& uuid, const std::string& xml, unsigned flags) const {
  virtChecked(virDomainAttachDeviceFlags(domain(uuid).get(), xml.c_str(), flags), "cannot attach a device to " + uuid);
}

void VirtLink::detachDevice(const std::string& uuid, const std::string& xml, unsigned flags) const {
  virtChecked(virDomainDetachDeviceFlags(domain(uuid).get(), xml.c_str(), flags),
              "cannot detach a device from " + uuid);
}

VirtScreenshot VirtLink::screenshot(const std::string& uuid) const {
  const auto found = domain(uuid);
  const StreamHandle stream(virtChecked(virStreamNew(connection_.get(), 0), "cannot open a stream"));
  VirtScreenshot shot;
  shot.mime = takeVirtString(virtChecked(virDomainScreenshot(found.get(), stream.get(), 0, 0),
                                         "cannot take a picture of the domain " + uuid));
  while (true) {
    char block[64 * 1024];
    const int count = virStreamRecv(stream.get(), block, sizeof block);
    if (count < 0) throwVirt("cannot read the picture of the domain " + uuid);
    if (count == 0) break;
    const std::span<const char> bytes(block, static_cast<std::size_t>(count));
    if (bytes.size() > kMaxScreenshotBytes - shot.bytes.size()) {
      virStreamAbort(stream.get());
      throw NativeError("E_LIBVIRT", "the picture of the domain " + uuid + " is too large");
    }
    shot.bytes.insert(shot.bytes.end(), bytes.begin(), bytes.end());
  }
  virtChecked(virStreamFinish(stream.get()), "cannot finish the picture of the domain " + uuid);
  return shot;
}

}  // namespace virtvault
