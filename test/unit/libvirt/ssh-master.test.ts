import t from 'tap'

import { greeter } from '../../../src/libvirt/ssh-master.js'

t.test('what a login shell is given is one line and one quoted word, as csh and fish want it', async t => {
  const line = greeter(60)
  t.notMatch(line, /\n/)
  t.match(line, /^exec sh -c '[^'!\\]*'$/)
  t.match(line, /timeout 60 /)
})
