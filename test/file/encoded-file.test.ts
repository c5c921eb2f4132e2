/** What may follow what in an encoded file, pair by pair, and how the system's errors are told. */
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { EFFORTS } from '../../src/compression/effort.ts'
import { decodeStream, FILE_ORDER, type FilePiece, type FilePlace } from '../../src/file/encoded-file-reader.ts'
import { encodeStream } from '../../src/file/encoded-file-writer.ts'
import { OutputFile } from '../../src/file/output-file.ts'
import { ioError } from '../../src/io-error.ts'
import { migration, page, scratch } from '../template/makers.ts'

t.test('every frame in every place', t => {
  // By hand, from docs/protocol.md: + means a new place, anything else is what is wrong.
  const wanted: Record<FilePlace, Record<FilePiece, string>> = {
    start: { OPEN: '+open', PART: 'before its flow', LAST: 'before its flow', FIN: 'before its flow', BYE: 'gave up' },
    open: { OPEN: 'second flow', PART: '+within a batch', LAST: '+open', FIN: '+closed', BYE: 'gave up' },
    'within a batch': {
      OPEN: 'second flow',
      PART: '+within a batch',
      LAST: '+open',
      FIN: 'FIN within a batch',
      BYE: 'gave up',
    },
    closed: { OPEN: 'behind FIN', PART: 'behind FIN', LAST: 'behind FIN', FIN: 'behind FIN', BYE: '+ended' },
    ended: {
      OPEN: 'behind the end',
      PART: 'behind the end',
      LAST: 'behind the end',
      FIN: 'behind the end',
      BYE: 'behind the end',
    },
  }
  for (const [place, pieces] of Object.entries(wanted)) {
    for (const [piece, text] of Object.entries(pieces)) {
      const found = FILE_ORDER[place as FilePlace][piece as FilePiece]
      if (text.startsWith('+')) t.equal(found, text.slice(1), `${piece} at ${place}`)
      else {
        t.match(found, { what: new RegExp(text) }, `${piece} at ${place}`)
        const early = piece === 'BYE' && place !== 'ended'
        t.match(found, { code: early ? 'BATCH_TRUNCATED' : 'PROTOCOL_SYNTAX' })
      }
    }
  }
  t.end()
})

t.test('errors of the system', t => {
  const system = (code: string): Error => Object.assign(new Error(`${code}: as the system says`), { code })
  t.match(ioError(system('ENOENT'), 'cannot read', 'a'), {
    code: 'IO',
    what: 'cannot read a: it does not exist (ENOENT)',
    where: { stream: 'a', offset: undefined },
    action: 'check the path',
  })
  for (const code of ['ENOSPC', 'EDQUOT', 'EFBIG']) {
    t.match(ioError(system(code), 'cannot write', 'a', 7, ', or less'), {
      where: { offset: 7 },
      action: 'nothing is left behind; make room, or less',
    })
  }
  t.match(ioError(system('EWHATEVER'), 'cannot write', 'a').what, /EWHATEVER: as the system says/)
  const typed = ioError(system('EIO'), 'cannot read', 'a')
  t.equal(ioError(typed, 'cannot open', 'b'), typed, 'what is told already is not told again')
  t.end()
})

t.test('pieces of a file are read into the same memory again and again', async t => {
  const pages = Array.from({ length: 600 }, (_, i) => page(i + 1))
  const input = migration(pages)
  const out: Uint8Array[] = []
  const options = { store: undefined, sets: [], ringPages: 64, places: 64, effort: EFFORTS[0]! }
  await encodeStream(
    (async function* () {
      yield input
    })(),
    bytes => void out.push(bytes.slice()),
    options,
  )
  const file = Buffer.concat(out)
  for (const length of [50_000, 262_144, 300_001]) {
    // as a file is read: buffers of Node, of which one is written to while the other is taken
    const lent = Buffer.alloc(length)
    const reused = async function* (): AsyncGenerator<Uint8Array> {
      for (let at = 0; at < file.length; at += length) {
        const taken = file.copy(lent, 0, at, at + length)
        yield lent.subarray(0, taken)
        lent.fill(0xee)
      }
    }
    const got: Buffer[] = []
    await decodeStream(reused(), async bytes => void got.push(Buffer.from(bytes)), { store: undefined, name: 'file' })
    t.ok(Buffer.concat(got).equals(input), `in pieces of ${length} bytes`)
  }
})

t.test('an output takes pieces while others are written, long and short, in their order', async t => {
  const { folder } = scratch(t.teardown)
  const lengths = [5, 300_000, 7, 262_144, 262_145, 0, 100_000, 200_000, 90_000, 400_000, 400_000, 1, 262_143, 2]
  const all = Buffer.alloc(lengths.reduce((sum, length) => sum + length, 0))
  for (let at = 0; at < all.length; at++) all[at] = (at * 7 + (at >> 8) * 3 + (at >> 16)) & 255
  for (const target of ['new', 'device']) {
    const path = join(folder, target)
    const output = new OutputFile(target === 'new' ? path : '/dev/null')
    const written: Promise<void>[] = []
    let at = 0
    for (const length of lengths) {
      const piece = Buffer.from(all.subarray(at, at + length))
      at += length
      const writing = output.write(piece)
      if (writing === undefined)
        piece.fill(0xee) // it may be used again
      else written.push(writing.then(() => void piece.fill(0xee)))
    }
    await Promise.all(written)
    await output.finish()
    if (target === 'new') t.ok(readFileSync(path).equals(all), 'whole, and in order')
  }
  const waits = new OutputFile(join(folder, 'no', 'such', 'folder'))
  const failing = [1, 300_000, 2].map(length => waits.write(Buffer.alloc(length)))
  for (const writing of failing) await t.rejects(writing!, { code: 'IO' })
  await t.rejects(waits.finish(), { code: 'IO' })
  await waits.discard()
  t.same(readdirSync(folder), ['new'])
})

t.test('what fails while cleaning up does not hide what failed before', async t => {
  const { folder } = scratch(t.teardown)
  const output = new OutputFile(join(folder, 'out'))
  await output.write(Buffer.from('some'))
  const [part = ''] = readdirSync(folder)
  rmSync(join(folder, part))
  mkdirSync(join(folder, part))
  writeFileSync(join(folder, part, 'x'), '') // a folder with something in it is not removed as a file is
  const first = new Error('first')
  const work = async (): Promise<void> => {
    try {
      throw first
    } finally {
      await output.discard()
    }
  }
  await t.rejects(work(), first)
})
