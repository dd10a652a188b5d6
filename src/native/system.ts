/** System calls that Node does not offer. */
export interface SystemBinding {
  /** flock(2) without waiting; false where another holder is in the way. `mode` 0 releases, 1 shared, 2 exclusive. */
  flock(fd: number, mode: 0 | 1 | 2): boolean
  /** renameat2 with RENAME_NOREPLACE; false where `to` exists. */
  renameNoReplace(from: string, to: string): boolean
  /** posix_fadvise POSIX_FADV_DONTNEED (after starting write-back of that part with sync_file_range). */
  dropCache(fd: number, offset: number, length: number): Promise<void>
  /** posix_fadvise POSIX_FADV_SEQUENTIAL or RANDOM over the whole file. */
  adviseAccess(fd: number, access: 'sequential' | 'random'): void
  /** fallocate: 'zero' zeroes a range, 'punch' makes a hole, 'reserve' allocates. Rejects E_UNSUPPORTED where the file cannot. */
  fallocate(fd: number, mode: 'reserve' | 'punch' | 'zero', offset: number, length: number): Promise<void>
  /** Next data at or after `offset` as [start, end), or undefined: SEEK_DATA and SEEK_HOLE. */
  nextData(fd: number, offset: number): [number, number] | undefined
  /** Size in bytes of a block device (BLKGETSIZE64). */
  blockDeviceSize(fd: number): number
  /** fdatasync-like for a whole file system. */
  syncfs(fd: number): Promise<void>
  /** One datagram to $NOTIFY_SOCKET; false where there is none. */
  sdNotify(socket: string, message: string): boolean
  /** CPU niceness and I/O class of this whole process (ioprio_set); class 2 best-effort, 3 idle. */
  setPriority(nice: number, ioClass: 2 | 3, ioLevel: number): void
  /** prctl(PR_SET_DUMPABLE, 0) and RLIMIT_CORE 0: keys stay out of core files. */
  protectMemory(): void
}
