/** What may follow what in an encoded file, pair by pair, and how the system's errors are told. */
import t from 'tap'
import { FILE_ORDER, type FilePiece, type FilePlace } from '../../src/file/encoded-file-reader.ts'
import { ioError } from '../../src/io-error.ts'

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
