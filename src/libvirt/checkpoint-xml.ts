import { BackupError } from '../base/errors.js'
import { attributeOf, buildXml, childOf, childrenOf, element, parseXml, textOfChild, wholeNumber } from './tree-xml.js'

export interface CheckpointDescription {
  readonly name: string
  readonly parent: string | undefined
  /** Seconds since the epoch, as libvirt wrote them. */
  readonly creationTime: string
  /** Those with a bitmap in it. */
  readonly disks: readonly CheckpointDisk[]
}

export interface CheckpointDisk {
  readonly target: string
  readonly bitmap: string
  /**
   * Bytes written since; only where sizes were asked for. Then undefined says
   * that the bitmap is missing or broken, by the very test that begin applies.
   */
  readonly dirtyBytes: number | undefined
}

/** Decodes what virDomainCheckpointGetXMLDesc gives. Throws E_LIBVIRT. */
export function parseCheckpointXml(text: string): CheckpointDescription {
  const root = parseXml(text, 'domaincheckpoint')
  const name = textOfChild(root, 'name')
  const creationTime = textOfChild(root, 'creationTime')
  if (name === undefined || creationTime === undefined || !/^[0-9]+$/.test(creationTime)) {
    throw new BackupError('E_LIBVIRT', 'libvirt gave a checkpoint without a name or a time')
  }
  const disks = childrenOf(childOf(root, 'disks'), 'disk').flatMap(disk => {
    const target = attributeOf(disk, 'name')
    if (target === undefined || attributeOf(disk, 'checkpoint') !== 'bitmap') return []
    return [{ target, bitmap: attributeOf(disk, 'bitmap') ?? name, dirtyBytes: wholeNumber(attributeOf(disk, 'size')) }]
  })
  return { name, parent: textOfChild(childOf(root, 'parent'), 'name'), creationTime, disks }
}

/**
 * The XML that makes libvirt know a checkpoint again whose bitmaps exist.
 * `parent` must be one that it knows already.
 */
export function buildRedefineXml(checkpoint: CheckpointDescription, parent: string | undefined): string {
  const disks = checkpoint.disks.map(({ target, bitmap }) =>
    element('disk', { name: target, checkpoint: 'bitmap', bitmap }),
  )
  return buildXml(
    element('domaincheckpoint', {}, [
      element('name', {}, checkpoint.name),
      ...(parent === undefined ? [] : [element('parent', {}, [element('name', {}, parent)])]),
      element('creationTime', {}, checkpoint.creationTime),
      element('disks', {}, disks),
    ]),
  )
}
