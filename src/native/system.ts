/**
 * System calls that Node does not offer. A call that fails throws or rejects
 * with E_IO or E_NO_SPACE and its `errno`; one that the kernel or this file
 * cannot do at all, with E_UNSUPPORTED. A wrong argument is a TypeError, at
 * once. File descriptors stay the caller's, and open until the promise settles.
 */
export interface SystemBinding {
  /** flock(2) without waiting; false where another holder is in the way. `mode` 0 releases, 1 shared, 2 exclusive. */
  flock(fd: number, mode: 0 | 1 | 2): boolean
  /** renameat2 with RENAME_NOREPLACE; false where `to` exists. */
  renameNoReplace(from: string, to: string): boolean
  /**
   * Writes a part back with sync_file_range, waits for that, and drops it from
   * the page cache. Makes nothing durable. A rejection is a failed write-back
   * that a later fsync of this descriptor will not report again: the file is
   * to be given up.
   */
  dropCache(fd: number, offset: number, length: number): Promise<void>
  /** posix_fadvise POSIX_FADV_SEQUENTIAL or RANDOM over the whole file. */
  adviseAccess(fd: number, access: 'sequential' | 'random'): void
  /**
   * fallocate: 'zero' zeroes a range, 'punch' makes a hole, 'reserve' allocates.
   * The size of the file never changes. Rejects E_UNSUPPORTED where the file cannot.
   */
  fallocate(fd: number, mode: 'reserve' | 'punch' | 'zero', offset: number, length: number): Promise<void>
  /**
   * Next data at or after `offset` as [start, end), or undefined: SEEK_DATA and
   * SEEK_HOLE. Moves the descriptor's position. E_UNSUPPORTED on a block device.
   */
  nextData(fd: number, offset: number): [number, number] | undefined
  /** Size in bytes of a block device (BLKGETSIZE64); E_UNSUPPORTED on anything else. */
  blockDeviceSize(fd: number): number
  /** fdatasync-like for a whole file system. */
  syncfs(fd: number): Promise<void>
  /** One datagram to `socket` ($NOTIFY_SOCKET: a path, or '@name'); false where nobody reads there. Waits a second at most. */
  sdNotify(socket: string, message: string): boolean
  /** CPU niceness and I/O class of all threads of this process (ioprio_set); class 2 best-effort, 3 idle. */
  setPriority(nice: number, ioClass: 2 | 3, ioLevel: number): void
  /** prctl(PR_SET_DUMPABLE, 0) and RLIMIT_CORE 0: keys stay out of core files. */
  protectMemory(): void
}
