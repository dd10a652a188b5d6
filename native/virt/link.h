// One connection to a hypervisor: every call of it that the product makes.
#pragma once

#include <libvirt/libvirt.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_handle.h"
#include "virt/event_source.h"
#include "virt/events.h"

namespace virtvault {

using VirtConnectHandle = std::unique_ptr<virConnect, Closer<virConnectClose>>;
using VirtDomainHandle = std::unique_ptr<virDomain, Closer<virDomainFree>>;
using VirtCheckpointHandle = std::unique_ptr<virDomainCheckpoint, Closer<virDomainCheckpointFree>>;

struct VirtOpenOptions {
  std::string uri;
  std::optional<std::string> username, passphrase;
  bool read_only = false;
};

struct VirtDomainInfo {
  std::string uuid, name;
  int id = -1, state = 0, reason = 0;
  bool persistent = false, has_managed_save = false;
};

struct VirtCheckpointInfo {
  std::string name;
  std::optional<std::string> parent;
};

struct VirtJobStats {
  int type = 0, operation = 0;
  std::uint64_t elapsed_ms = 0, disk_temp_used = 0, disk_temp_total = 0;
};

struct VirtBlockJobInfo {
  int type = 0;
  std::uint64_t current = 0, end = 0;
};

struct VirtBlockInfo {
  std::uint64_t capacity = 0, allocation = 0, physical = 0;
};

struct VirtDiskError {
  std::string disk;
  int error = 0;
};

struct VirtSecretBytes {
  std::vector<unsigned char> bytes;
};

struct VirtScreenshot {
  std::string mime;
  std::vector<std::uint8_t> bytes;
};

// May be used by several threads at once, as libvirt's connections may. Every
// call blocks, and throws NativeError with the calling thread's libvirt error.
// Domains are looked up by UUID for each call: a handle kept while a domain is
// undefined and defined again would name the wrong one.
class VirtLink {
 public:
  // `domain_events`: whether `sink` hears of domains, or of the connection's end only.
  VirtLink(const VirtOpenOptions& options, const VirtEventSink& sink, bool domain_events);

  // connection
  std::string hostname() const;
  std::uint64_t daemonVersion() const;
  std::string driver() const;
  std::uint64_t hypervisorVersion() const;
  bool isAlive() const;
  std::string capabilities() const;
  std::string volumePath(const std::string& pool, const std::string& volume) const;
  std::string poolTargetPath(const std::string& pool) const;
  VirtSecretBytes secretValue(const std::string& uuid) const;

  // domains
  std::vector<VirtDomainInfo> listDomains() const;
  VirtDomainInfo lookupDomain(const std::string& name_or_uuid) const;
  std::string domainXml(const std::string& uuid, unsigned flags) const;
  VirtDomainInfo defineDomain(const std::string& xml, unsigned flags) const;
  void createDomain(const std::string& uuid, unsigned flags) const;
  VirtDomainInfo createDomainXml(const std::string& xml, unsigned flags) const;
  void destroyDomain(const std::string& uuid, unsigned flags) const;
  void shutdownDomain(const std::string& uuid) const;
  void suspendDomain(const std::string& uuid) const;
  void resumeDomain(const std::string& uuid) const;
  void undefineDomain(const std::string& uuid, unsigned flags) const;
  void managedSaveRemove(const std::string& uuid) const;
  std::optional<std::string> getMetadata(const std::string& uuid, const std::string& ns) const;
  // Live and persistent where both exist. Without `xml`, removes.
  void setMetadata(const std::string& uuid, const std::string& ns, const std::string& prefix,
                   const std::optional<std::string>& xml) const;
  void attachDevice(const std::string& uuid, const std::string& xml, unsigned flags) const;
  void detachDevice(const std::string& uuid, const std::string& xml, unsigned flags) const;
  VirtScreenshot screenshot(const std::string& uuid) const;

  // backup jobs and disks
  void backupBegin(const std::string& uuid, const std::string& backup_xml,
                   const std::optional<std::string>& checkpoint_xml, unsigned flags) const;
  std::optional<std::string> backupXml(const std::string& uuid) const;
  bool abortJob(const std::string& uuid) const;
  VirtJobStats jobStats(const std::string& uuid) const;
  std::optional<VirtBlockJobInfo> blockJobInfo(const std::string& uuid, const std::string& disk) const;
  void blockPull(const std::string& uuid, const std::string& disk, std::uint64_t bytes_per_second) const;
  void blockJobAbort(const std::string& uuid, const std::string& disk) const;
  VirtBlockInfo blockInfo(const std::string& uuid, const std::string& disk) const;
  void blockResize(const std::string& uuid, const std::string& disk, std::uint64_t bytes) const;
  void setBlockThreshold(const std::string& uuid, const std::string& device, std::uint64_t bytes) const;
  std::vector<VirtDiskError> diskErrors(const std::string& uuid) const;

  // checkpoints
  std::vector<VirtCheckpointInfo> listCheckpoints(const std::string& uuid) const;
  std::string checkpointXml(const std::string& uuid, const std::string& name, unsigned flags) const;
  void createCheckpoint(const std::string& uuid, const std::string& xml, unsigned flags) const;
  bool deleteCheckpoint(const std::string& uuid, const std::string& name, unsigned flags) const;

  // guest agent
  void agentSetTimeout(const std::string& uuid, int seconds) const;
  void agentPing(const std::string& uuid, int timeout_seconds) const;
  std::string agentCommand(const std::string& uuid, const std::string& json, int timeout_seconds) const;
  int fsFreeze(const std::string& uuid, const std::vector<std::string>& mountpoints) const;
  int fsThaw(const std::string& uuid, const std::vector<std::string>& mountpoints) const;

 private:
  VirtDomainHandle domain(const std::string& uuid) const;

  // In this order: the events go before the connection closes.
  VirtConnectHandle connection_;
  std::unique_ptr<VirtEventSource> events_;
};

// Takes over a string that libvirt allocated.
std::string takeVirtString(char* text);

}  // namespace virtvault
