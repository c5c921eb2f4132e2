/** Sockets that are, or are not, a QEMU's QMP: what `doctor` and `migrate` may be pointed at. */
import net from 'node:net'

const GREETING = { QMP: { version: { qemu: { major: 7, minor: 2, micro: 22 }, package: '' }, capabilities: [] } }
const EVENT = `${JSON.stringify({ event: 'MIGRATION_PASS', data: { pass: 1, filler: 'x'.repeat(1000) } })}\n`

type Answers = Readonly<Record<string, unknown>>

const CAPABILITIES = [
  { capability: 'return-path', state: true },
  { capability: 'multifd', state: false },
]

/** A QEMU that answers, with a greeting of its own or QEMU's. */
function qemu(answers: Answers, greeting: unknown = GREETING): (socket: net.Socket) => void {
  return socket => {
    socket.write(`${JSON.stringify(greeting)}\n`)
    let text = ''
    socket.on('data', chunk => {
      const lines = (text + chunk).split('\n')
      text = lines.pop()!
      for (const line of lines) {
        const { execute, id } = JSON.parse(line) as { execute: string; id: number }
        const answer = Object.hasOwn(answers, execute) ? answers[execute] : {}
        if (answer !== undefined) socket.write(`${JSON.stringify({ return: answer, id })}\n`)
      }
    })
  }
}

/** Says the same for as long as somebody reads. */
function endless(text: string): (socket: net.Socket) => void {
  return socket => {
    const more = (): void => {
      while (!socket.destroyed && socket.write(text)) {}
    }
    socket.on('drain', more)
    more()
  }
}

/** Each by the name of its socket. */
export const QMP_SERVERS: Readonly<Record<string, (socket: net.Socket) => void>> = {
  sound: qemu({ 'query-migrate-capabilities': CAPABILITIES, 'query-migrate-parameters': { 'max-bandwidth': 0 } }),
  matters: qemu({
    'query-migrate-capabilities': CAPABILITIES,
    'query-migrate-parameters': { 'max-bandwidth': 128 << 20, 'tls-creds': '\x1b[2Jtls\n! forged' },
  }),
  human: socket => void socket.write("QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) "),
  'human-asked': socket => {
    socket.write("QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) \n")
  },
  null: socket => void socket.write('null\n'),
  array: socket => void socket.write('[]\n'),
  'no-version': qemu({}, { QMP: {} }),
  'odd-version': qemu({}, { QMP: { version: { qemu: { major: 'x\x1b', minor: {}, micro: null } } } }),
  'null-answers': qemu({ 'query-migrate-capabilities': null }),
  'null-state': qemu({ 'query-status': null }),
  'odd-answers': qemu({ 'query-migrate-capabilities': [null, 1, { capability: 5 }] }),
  'odd-parameters': qemu({ 'query-migrate-capabilities': CAPABILITIES, 'query-migrate-parameters': 'x' }),
  'never-answers': qemu({ 'query-migrate-capabilities': undefined }),
  events: endless(EVENT),
  'events-greeted': socket => {
    qemu({ 'query-migrate-capabilities': undefined })(socket)
    endless(EVENT)(socket)
  },
  'a-line': endless('x'.repeat(65536)),
  silent: () => {},
  closes: socket => socket.destroy(),
  refuses: socket => {
    socket.write(`${JSON.stringify(GREETING)}\n`)
    socket.on('data', chunk => {
      const { id } = JSON.parse(String(chunk)) as { id: number }
      socket.write(`${JSON.stringify({ error: { class: 'GenericError', desc: 'no\n\x1b[31m' }, id })}\n`)
    })
  },
}

/** Listens in a folder, a socket for each. @returns ends them */
export async function serveQmp(folder: string): Promise<() => void> {
  const sockets = new Set<net.Socket>()
  const servers = await Promise.all(
    Object.entries(QMP_SERVERS).map(async ([name, handle]) => {
      const server = net.createServer(socket => {
        sockets.add(socket)
        socket.on('error', () => {}).on('close', () => sockets.delete(socket))
        handle(socket)
      })
      await new Promise<void>(done => server.listen(`${folder}/${name}`, done))
      return server
    }),
  )
  return () => {
    for (const server of servers) server.close()
    for (const socket of sockets) socket.destroy()
  }
}
