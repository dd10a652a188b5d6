import { COMMAND_TABLE, loadCommand } from './command-table.js'

/** All commands at once, for oclif's own loader (tests, manifest); the program itself loads only the one it runs. */
export const COMMANDS = Object.fromEntries(
  await Promise.all(COMMAND_TABLE.map(async entry => [entry.id, await loadCommand(entry)] as const)),
)
