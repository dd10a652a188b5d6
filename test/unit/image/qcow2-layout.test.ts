import fc from 'fast-check'
import t from 'tap'

import { encodeHeader, planRefcounts, qcow2Geometry } from '../../../src/image/qcow2-layout.js'

t.test('the header is what the specification says, byte for byte', async t => {
  const geometry = qcow2Geometry({ size: 2 ** 40, lazyRefcounts: true })

  const header = encodeHeader(geometry, { l1Table: 0x30000, refcountTable: 0x50000, refcountTableClusters: 1 })

  t.equal(
    Buffer.from(header.subarray(0, 112)).toString('hex'),
    [
      '514649fb', // magic
      '00000003', // version
      '0000000000000000', // backing_file_offset
      '00000000', // backing_file_size
      '00000010', // cluster_bits
      '0000010000000000', // size
      '00000000', // crypt_method
      '00000800', // l1_size
      '0000000000030000', // l1_table_offset
      '0000000000050000', // refcount_table_offset
      '00000001', // refcount_table_clusters
      '00000000', // nb_snapshots
      '0000000000000000', // snapshots_offset
      '0000000000000000', // incompatible_features
      '0000000000000001', // compatible_features: lazy refcounts
      '0000000000000000', // autoclear_features
      '00000004', // refcount_order
      '00000070', // header_length
      '0000000000000000', // compression_type and padding
    ].join(''),
  )
})

t.test('refcount blocks cover the file, themselves and their table included, and not one too many', async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 9, max: 21 }), fc.integer({ min: 1, max: 2 ** 22 }), async (bits, used) => {
      const geometry = qcow2Geometry({ size: 512, clusterSize: 2 ** bits })
      const plan = planRefcounts(geometry, used)

      const perBlock = geometry.clusterSize / 2
      if (plan.total !== used + plan.blocks + plan.tableClusters) throw new Error('wrong total')
      if (plan.blocks * perBlock < plan.total) throw new Error('some clusters have no refcount')
      if ((plan.blocks - 1) * perBlock >= plan.total) throw new Error('a block too many')
      if (plan.tableClusters * geometry.clusterSize < plan.blocks * 8) throw new Error('the table is too short')
    }),
  )
})

t.test('a disk of 16 TiB needs an L1 table of 256 KiB', async t => {
  t.equal(qcow2Geometry({ size: 2 ** 44 }).l1Entries * 8, 256 * 1024)
})

t.test('a size that is no multiple of a sector is rounded up', async t => {
  t.equal(qcow2Geometry({ size: 513 }).size, 1024)
})
