import t from 'tap'

import { leastRoom, mountOf, quotaRoomOf } from '../../../src/libvirt/scratch-quota.js'

const MOUNTS = String.raw`22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 253:4 / /srv/my\040scratch rw,relatime shared:9 - xfs /dev/mapper/s rw,attr2,usrquota,prjquota
31 22 253:5 / /srv/my rw,relatime - ext4 /dev/mapper/m rw,usrjquota=aquota.user,jqfmt=vfsv0
32 22 253:6 / /srv/plain rw - xfs /dev/mapper/p rw,noquota
`

t.test('the file system of a path is that of the longest place above it', async t => {
  t.match(mountOf('/srv/my scratch/run-1', MOUNTS), { path: '/srv/my scratch', type: 'xfs' })
  t.match(mountOf('/srv/my/deep', MOUNTS), { path: '/srv/my', type: 'ext4' })
  t.match(mountOf('/srv/mystery', MOUNTS), { path: '/' })
  t.equal(mountOf('/srv', ''), undefined)
})

t.test('of the groups of a btrfs the one with the least room counts', async t => {
  const table = `Qgroupid    Referenced    Exclusive Max referenced  Max exclusive   Path
--------    ----------    ---------  --------------  -------------   ----
0/5              16384        16384            none           none   <toplevel>
0/256         20951040     20951040        52428800       20971520   s
1/1           20951040     20951040       104857600           none   <0 member qgroups>
`
  t.equal(leastRoom(table), 20_480)
  t.equal(leastRoom('0/256 300 100 1000 700'), 600)
  t.equal(leastRoom('0/5 16384 16384 none none'), undefined)
  t.equal(leastRoom('0/256 300 300 200 none s'), 0, 'more than allowed is no room')
})

t.test('where no quota can be there is none', async t => {
  t.strictSame(await quotaRoomOf('/proc'), { kind: 'none' })
  t.strictSame(await quotaRoomOf('/nowhere'), { kind: 'none' })
})
