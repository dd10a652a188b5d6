/** Names and letters of the global flags that take a value; they may stand before the command. */
export const GLOBAL_FLAGS_WITH_VALUE: ReadonlySet<string> = new Set([
  '--config',
  '-c',
  '--connect',
  '-t',
  '--target',
  '--progress',
  '--color',
  '--override',
])
