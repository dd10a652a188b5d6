import { readFile } from 'node:fs/promises'

export interface MountEntry {
  readonly directory: string
  readonly options: ReadonlySet<string>
  /** `fuse`, `fuse.ext4`, `ext4`. */
  readonly type: string
}

/** What is mounted at `directory`, the topmost; undefined where nothing is. Asks the kernel, never the file system. */
export async function mountedAt(directory: string): Promise<MountEntry | undefined> {
  return (await mounts()).findLast(entry => entry.directory === directory)
}

/** All mounts of this mount namespace, in the order in which they lie upon each other. */
export async function mounts(): Promise<readonly MountEntry[]> {
  const table = await readFile('/proc/self/mountinfo', 'utf8')
  return table.split('\n').flatMap(line => {
    const fields = line.split(' ')
    const end = fields.indexOf('-')
    const [directory, options, type] = [fields[4], fields[5], fields[end + 1]]
    if (end < 0 || directory === undefined || options === undefined || type === undefined) return []
    return [{ directory: unescape(directory), options: new Set(options.split(',')), type }]
  })
}

/** The kernel writes blanks, tabs, newlines and backslashes in octal. */
function unescape(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))
}
