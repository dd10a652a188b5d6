/**
 * libvirt, promise-based. Every call runs on threads of its own (not the libuv
 * pool), because it may block for half a minute. Rejections carry our code and
 * libvirt's `libvirtCode` and `libvirtDomain` (VIR_ERR_*, VIR_FROM_*).
 */
export interface VirtBinding {
  /** Opens two connections: one for calls that may block, one kept free for abort, thaw, resume and statistics. */
  virtConnect(options: VirtConnectOptions): Promise<NativeVirtConnection>
  /** Version of the client library, major * 1000000 + minor * 1000 + micro. */
  virtLibraryVersion(): number
}

export interface VirtConnectOptions {
  readonly uri: string
  readonly username?: string | undefined
  readonly passphrase?: string | undefined
  readonly readOnly?: boolean | undefined
  /**
   * Called on the JavaScript thread for each event; must not throw. An open
   * connection does not keep Node running, a call under way does.
   */
  readonly onEvent?: ((event: VirtEvent) => void) | undefined
}

export type VirtEvent =
  | { readonly kind: 'closed'; readonly reason: number }
  | {
      readonly kind: 'lifecycle'
      readonly uuid: string
      readonly name: string
      readonly event: number
      readonly detail: number
    }
  | {
      readonly kind: 'job-completed'
      readonly uuid: string
      readonly operation: number
      readonly success: boolean
      readonly message: string
    }
  | {
      readonly kind: 'io-error'
      readonly uuid: string
      readonly path: string
      readonly alias: string
      readonly action: number
      readonly reason: string
    }
  | { readonly kind: 'agent'; readonly uuid: string; readonly connected: boolean }
  | {
      readonly kind: 'block-job'
      readonly uuid: string
      readonly disk: string
      readonly type: number
      readonly status: number
    }
  /** `device` as setBlockThreshold() was given it; told once. */
  | {
      readonly kind: 'block-threshold'
      readonly uuid: string
      readonly device: string
      readonly threshold: number
    }
  | { readonly kind: 'metadata'; readonly uuid: string; readonly uri: string }

export interface VirtDomainInfo {
  readonly uuid: string
  readonly name: string
  /** -1 when not running. */
  readonly id: number
  /** virDomainState and its reason. */
  readonly state: number
  readonly reason: number
  readonly persistent: boolean
  readonly hasManagedSave: boolean
}

export interface VirtCheckpointInfo {
  readonly name: string
  readonly parent: string | undefined
}

export interface VirtJobStats {
  /** virDomainJobType: 0 none, 1 bounded, 2 unbounded, 3 completed, 4 failed, 5 cancelled. */
  readonly type: number
  readonly operation: number
  readonly elapsedMs: number
  readonly diskTempUsed: number
  readonly diskTempTotal: number
}

/** Domains are named by UUID; handles never leave C++. */
export interface NativeVirtConnection {
  hostname(): Promise<string>
  /** Of the daemon, encoded as virtLibraryVersion(). */
  daemonVersion(): Promise<number>
  /** e.g. 'QEMU', 'Test'. */
  driver(): Promise<string>
  hypervisorVersion(): Promise<number>
  isAlive(): Promise<boolean>
  capabilities(): Promise<string>

  listDomains(): Promise<VirtDomainInfo[]>
  /** By name or UUID; rejects with E_NOT_FOUND. */
  lookupDomain(nameOrUuid: string): Promise<VirtDomainInfo>
  domainXml(uuid: string, options: { readonly inactive?: boolean; readonly secure?: boolean }): Promise<string>
  defineDomain(xml: string, options: { readonly validate?: boolean }): Promise<VirtDomainInfo>
  createDomain(
    uuid: string,
    options: { readonly paused?: boolean; readonly autodestroy?: boolean; readonly forceBoot?: boolean },
  ): Promise<void>
  createDomainXml(
    xml: string,
    options: { readonly paused?: boolean; readonly autodestroy?: boolean },
  ): Promise<VirtDomainInfo>
  destroyDomain(uuid: string, options: { readonly graceful?: boolean }): Promise<void>
  shutdownDomain(uuid: string): Promise<void>
  suspendDomain(uuid: string): Promise<void>
  /** On the rescue connection. */
  resumeDomain(uuid: string): Promise<void>
  undefineDomain(uuid: string, flags: number): Promise<void>
  managedSaveRemove(uuid: string): Promise<void>

  /** undefined where the domain has none. */
  getMetadata(uuid: string, namespace: string): Promise<string | undefined>
  /** xml undefined removes. */
  setMetadata(uuid: string, namespace: string, prefix: string, xml: string | undefined): Promise<void>

  backupBegin(uuid: string, backupXml: string, checkpointXml: string | undefined, flags: number): Promise<void>
  /** undefined where no backup job runs. On the rescue connection. */
  backupXml(uuid: string): Promise<string | undefined>
  /** On the rescue connection. false where no job was active. */
  abortJob(uuid: string): Promise<boolean>
  /** On the rescue connection. */
  jobStats(uuid: string): Promise<VirtJobStats>
  blockJobType(uuid: string, disk: string): Promise<number | undefined>
  blockPull(uuid: string, disk: string, bandwidthBytes: number): Promise<void>
  blockJobAbort(uuid: string, disk: string): Promise<void>
  blockJobInfo(
    uuid: string,
    disk: string,
  ): Promise<{ readonly type: number; readonly current: number; readonly end: number } | undefined>
  blockInfo(
    uuid: string,
    disk: string,
  ): Promise<{ readonly capacity: number; readonly allocation: number; readonly physical: number }>
  blockResize(uuid: string, disk: string, bytes: number): Promise<void>
  /**
   * Has a `block-threshold` event sent when QEMU writes past `bytes` of a node: `vda`, or `vda[7]` with the index that
   * the backup's XML gives its scratch. Replaces what was set before.
   */
  setBlockThreshold(uuid: string, device: string, bytes: number): Promise<void>
  diskErrors(uuid: string): Promise<{ readonly disk: string; readonly error: number }[]>

  listCheckpoints(uuid: string): Promise<VirtCheckpointInfo[]>
  /** flags: SECURE 1, NO_DOMAIN 2, SIZE 4. */
  checkpointXml(uuid: string, name: string, flags: number): Promise<string>
  /** flags: REDEFINE 1, REDEFINE_VALIDATE 4. */
  createCheckpoint(uuid: string, xml: string, flags: number): Promise<void>
  /** false where there is no such checkpoint. flags: METADATA_ONLY 2. */
  deleteCheckpoint(uuid: string, name: string, flags: number): Promise<boolean>

  agentSetTimeout(uuid: string, seconds: number): Promise<void>
  agentPing(uuid: string, timeoutSeconds: number): Promise<void>
  /** One command for the guest agent, JSON in and out (virDomainQemuAgentCommand). */
  agentCommand(uuid: string, json: string, timeoutSeconds: number): Promise<string>
  /** Number of file systems frozen. */
  fsFreeze(uuid: string, mountpoints: readonly string[]): Promise<number>
  /** On the rescue connection. */
  fsThaw(uuid: string, mountpoints: readonly string[]): Promise<number>

  attachDevice(uuid: string, xml: string, flags: number): Promise<void>
  detachDevice(uuid: string, xml: string, flags: number): Promise<void>
  screenshot(uuid: string): Promise<{ readonly mime: string; readonly bytes: Uint8Array }>
  /** Path of a volume in a storage pool. */
  volumePath(pool: string, volume: string): Promise<string>
  poolTargetPath(pool: string): Promise<string>
  /** Of a libvirt secret, which must not be a private one; E_LIBVIRT where it is, or has no value. Keep it out of logs. */
  secretValue(uuid: string): Promise<Uint8Array>

  /** Closes both connections; idempotent, never rejects. */
  close(): Promise<void>
}
