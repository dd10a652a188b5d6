// The guardian's process: see guardian-main.ts.
const bundled: import('./bundled.cjs').Bundled = require('./bundled.cjs')

void bundled.loadProgram('guardian-main')
