// Backup jobs, disks, checkpoints, and the guest agent.
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>

#include <cstdlib>
#include <string>

#include "virt/link.h"
#include "virt/virt_error.h"

namespace virtvault {
namespace {

// Owns the parameters that virDomainGetJobStats allocates.
struct JobParams {
  JobParams() = default;
  JobParams(const JobParams&) = delete;
  JobParams& operator=(const JobParams&) = delete;
  ~JobParams() { virTypedParamsFree(list, count); }

  std::uint64_t number(const char* key) const {
    unsigned long long value = 0;
    virTypedParamsGetULLong(list, count, key, &value);
    return value;
  }

  virTypedParameterPtr list = nullptr;
  int count = 0;
};

VirtCheckpointHandle findCheckpoint(virDomainPtr domain, const std::string& name) {
  return VirtCheckpointHandle(virDomainCheckpointLookupByName(domain, name.c_str(), 0));
}

std::vector<const char*> pointersTo(const std::vector<std::string>& texts) {
  std::vector<const char*> pointers;
  pointers.reserve(texts.size());
  for (const auto& text : texts) pointers.push_back(text.c_str());
  return pointers;
}

}  // namespace

void VirtLink::backupBegin(const std::string& uuid, const std::string& backup_xml,
                           const std::optional<std::string>& checkpoint_xml, unsigned flags) const {
  virtChecked(virDomainBackupBegin(domain(uuid).get(), backup_xml.c_str(),
                                   checkpoint_xml ? checkpoint_xml->c_str() : nullptr, flags),
              "cannot begin the backup of the domain " + uuid);
}

std::optional<std::string> VirtLink::backupXml(const std::string& uuid) const {
  const auto found = domain(uuid);
  char* xml = virDomainBackupGetXMLDesc(found.get(), 0);
  if (xml != nullptr) return takeVirtString(xml);
  if (lastVirtCode() == VIR_ERR_NO_DOMAIN_BACKUP) return std::nullopt;
  throwVirt("cannot ask for the backup job of the domain " + uuid);
}

bool VirtLink::abortJob(const std::string& uuid) const {
  const auto found = domain(uuid);
  if (virDomainAbortJob(found.get()) == 0) return true;
  // "no job is active on the domain", and "domain is not running".
  if (lastVirtCode() == VIR_ERR_OPERATION_INVALID) return false;
  throwVirt("cannot end the job of the domain " + uuid);
}

VirtJobStats VirtLink::jobStats(const std::string& uuid) const {
  const auto found = domain(uuid);
  JobParams params;
  VirtJobStats stats;
  virtChecked(virDomainGetJobStats(found.get(), &stats.type, &params.list, &params.count, 0),
              "cannot ask for the job of the domain " + uuid);
  virTypedParamsGetInt(params.list, params.count, VIR_DOMAIN_JOB_OPERATION, &stats.operation);
  stats.elapsed_ms = params.number(VIR_DOMAIN_JOB_TIME_ELAPSED);
  stats.disk_temp_used = params.number(VIR_DOMAIN_JOB_DISK_TEMP_USED);
  stats.disk_temp_total = params.number(VIR_DOMAIN_JOB_DISK_TEMP_TOTAL);
  return stats;
}

std::optional<VirtBlockJobInfo> VirtLink::blockJobInfo(const std::string& uuid, const std::string& disk) const {
  const auto found = domain(uuid);
  virDomainBlockJobInfo info{};
  const int count = virtChecked(virDomainGetBlockJobInfo(found.get(), disk.c_str(), &info, 0),
                                "cannot ask for the block job of disk " + disk);
  if (count == 0) return std::nullopt;
  return VirtBlockJobInfo{info.type, info.cur, info.end};
}

void VirtLink::blockPull(const std::string& uuid, const std::string& disk, std::uint64_t bytes_per_second) const {
  virtChecked(virDomainBlockPull(domain(uuid).get(), disk.c_str(), bytes_per_second,
                                 VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES),
              "cannot pull disk " + disk + " into its image");
}

void VirtLink::blockJobAbort(const std::string& uuid, const std::string& disk) const {
  virtChecked(virDomainBlockJobAbort(domain(uuid).get(), disk.c_str(), 0), "cannot end the block job of disk " + disk);
}

VirtBlockInfo VirtLink::blockInfo(const std::string& uuid, const std::string& disk) const {
  virDomainBlockInfo info{};
  virtChecked(virDomainGetBlockInfo(domain(uuid).get(), disk.c_str(), &info, 0),
              "cannot ask for the size of disk " + disk);
  return VirtBlockInfo{info.capacity, info.allocation, info.physical};
}

void VirtLink::blockResize(const std::string& uuid, const std::string& disk, std::uint64_t bytes) const {
  virtChecked(virDomainBlockResize(domain(uuid).get(), disk.c_str(), bytes, VIR_DOMAIN_BLOCK_RESIZE_BYTES),
              "cannot resize disk " + disk);
}

void VirtLink::setBlockThreshold(const std::string& uuid, const std::string& device, std::uint64_t bytes) const {
  virtChecked(virDomainSetBlockThreshold(domain(uuid).get(), device.c_str(), bytes, 0),
              "cannot have " + device + " watched");
}

std::vector<VirtDiskError> VirtLink::diskErrors(const std::string& uuid) const {
  const auto found = domain(uuid);
  const std::string what = "cannot ask for the disk errors of the domain " + uuid;
  const int room = virtChecked(virDomainGetDiskErrors(found.get(), nullptr, 0, 0), what);
  std::vector<virDomainDiskError> raw(static_cast<std::size_t>(room));
  const int count =
      room == 0 ? 0 : virtChecked(virDomainGetDiskErrors(found.get(), raw.data(), raw.size(), 0), what);
  std::vector<VirtDiskError> errors;
  for (int i = 0; i < count; i++) {
    const auto& entry = raw[static_cast<std::size_t>(i)];
    errors.push_back({takeVirtString(entry.disk), entry.error});
  }
  return errors;
}

std::vector<VirtCheckpointInfo> VirtLink::listCheckpoints(const std::string& uuid) const {
  const auto found = domain(uuid);
  virDomainCheckpointPtr* list = nullptr;
  // Parents first: without it, the order is that of a hash table.
  const int count = virtChecked(
      virDomainListAllCheckpoints(found.get(), &list, VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL),
      "cannot list the checkpoints of the domain " + uuid);
  const std::unique_ptr<virDomainCheckpointPtr, Closer<std::free>> owner(list);
  std::vector<VirtCheckpointHandle> checkpoints;
  checkpoints.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; i++) checkpoints.emplace_back(list[i]);

  std::vector<VirtCheckpointInfo> infos;
  infos.reserve(checkpoints.size());
  for (const auto& checkpoint : checkpoints) {
    VirtCheckpointInfo info;
    info.name = virtChecked(virDomainCheckpointGetName(checkpoint.get()), "cannot ask for a checkpoint's name");
    const VirtCheckpointHandle parent(virDomainCheckpointGetParent(checkpoint.get(), 0));
    if (parent) {
      info.parent = virtChecked(virDomainCheckpointGetName(parent.get()), "cannot ask for a checkpoint's name");
    } else if (lastVirtCode() != VIR_ERR_NO_DOMAIN_CHECKPOINT) {
      throwVirt("cannot ask for the parent of checkpoint " + info.name);
    }
    infos.push_back(std::move(info));
  }
  return infos;
}

std::string VirtLink::checkpointXml(const std::string& uuid, const std::string& name, unsigned flags) const {
  const auto found = domain(uuid);
  const auto checkpoint = findCheckpoint(found.get(), name);
  const std::string what = "cannot describe the checkpoint " + name;
  if (!checkpoint) throwVirt(what);
  return takeVirtString(virtChecked(virDomainCheckpointGetXMLDesc(checkpoint.get(), flags), what));
}

void VirtLink::createCheckpoint(const std::string& uuid, const std::string& xml, unsigned flags) const {
  const auto found = domain(uuid);
  const VirtCheckpointHandle created(virtChecked(virDomainCheckpointCreateXML(found.get(), xml.c_str(), flags),
                                                 "cannot create a checkpoint of the domain " + uuid));
}

bool VirtLink::deleteCheckpoint(const std::string& uuid, const std::string& name, unsigned flags) const {
  const auto found = domain(uuid);
  const std::string what = "cannot delete the checkpoint " + name;
  const auto checkpoint = findCheckpoint(found.get(), name);
  if (checkpoint && virDomainCheckpointDelete(checkpoint.get(), flags) == 0) return true;
  if (lastVirtCode() == VIR_ERR_NO_DOMAIN_CHECKPOINT) return false;
  throwVirt(what);
}

void VirtLink::agentSetTimeout(const std::string& uuid, int seconds) const {
  virtChecked(virDomainAgentSetResponseTimeout(domain(uuid).get(), seconds, 0),
              "cannot set the guest agent's timeout of the domain " + uuid);
}

void VirtLink::agentPing(const std::string& uuid, int timeout_seconds) const {
  static_cast<void>(agentCommand(uuid, R"({"execute":"guest-ping"})", timeout_seconds));
}

std::string VirtLink::agentCommand(const std::string& uuid, const std::string& json, int timeout_seconds) const {
  return takeVirtString(
      virtChecked(virDomainQemuAgentCommand(domain(uuid).get(), json.c_str(), timeout_seconds, 0),
                  "the guest agent of the domain " + uuid + " did not do what it was asked"));
}

int VirtLink::fsFreeze(const std::string& uuid, const std::vector<std::string>& mountpoints) const {
  auto pointers = pointersTo(mountpoints);
  return virtChecked(virDomainFSFreeze(domain(uuid).get(), pointers.empty() ? nullptr : pointers.data(),
                                       static_cast<unsigned>(pointers.size()), 0),
                     "cannot freeze the file systems of the domain " + uuid);
}

int VirtLink::fsThaw(const std::string& uuid, const std::vector<std::string>& mountpoints) const {
  auto pointers = pointersTo(mountpoints);
  return virtChecked(virDomainFSThaw(domain(uuid).get(), pointers.empty() ? nullptr : pointers.data(),
                                     static_cast<unsigned>(pointers.size()), 0),
                     "cannot thaw the file systems of the domain " + uuid);
}

}  // namespace virtvault
