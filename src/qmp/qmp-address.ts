/** Where a QEMU's QMP socket is: on this host, or on another one that ssh leads to. */
import { spawn } from 'node:child_process'
import { Duplex } from 'node:stream'
import { isProxyError, ProxyError } from '../errors.ts'
import { QmpClient } from './qmp-client.ts'

/** A socket by its path; with `host` on that host. */
export interface QmpAddress {
  readonly path: string
  readonly host?: string
}

/** How long each step of a QEMU may take: it answers at once, or is not what we take it for. */
const STEP_MS = 10_000
/** ssh has keys to agree on first, over a WAN. */
const SSH_STEP_MS = 30_000
/** Of what ssh says, the end is told. */
const SSH_SAYS_CHARS = 300

/** Between its end and that of what it says. */
const LAST_WORDS_MS = 500

/** What the far shell and socat take as it is, quoted or not. */
const PLAIN_PATH = /^\/[\w@%+=./-]+$/
/** A name, an address, one in brackets; a user in front. Never an option of ssh. */
const HOST = /^(?:[A-Za-z0-9_][\w.-]*@)?(?:[A-Za-z0-9][\w.-]*|\[[0-9A-Fa-f:.]+\])$/

/**
 * `PATH`, `unix:PATH`, or `ssh:HOST:PATH`.
 * @param option what the error calls it, `--qmp`
 * @throws ADDRESS
 */
export function parseQmpAddress(text: string, option: string): QmpAddress {
  if (!text.startsWith('ssh:')) return { path: text.startsWith('unix:') ? text.slice(5) : text }
  const slash = text.indexOf(':/')
  const [host, path] = slash < 0 ? ['', ''] : [text.slice(4, slash), text.slice(slash + 1)]
  const wrong = (hint: string): ProxyError => new ProxyError('ADDRESS', `${option} ${text}`, undefined, hint)
  if (!HOST.test(host))
    throw wrong('write ssh:HOST:/PATH or ssh:USER@HOST:/PATH; ports and keys stand in ~/.ssh/config')
  if (!PLAIN_PATH.test(path))
    throw wrong('over ssh a path has letters, digits and @%+=_./- alone: give QEMU such a socket')
  return { path, host: host.replace(/[[\]]/g, '') }
}

/** As {@link parseQmpAddress} takes it. */
export function formatQmpAddress({ path, host }: QmpAddress): string {
  if (host === undefined) return path
  return `ssh:${host.includes(':') ? host.replace(/[^@]*$/, '[$&]') : host}:${path}`
}

/**
 * Opens QMP there. Commands are given up after 10 s without an answer, if they do not say otherwise.
 * @throws ProxyError IO
 */
export async function openQmp(address: QmpAddress): Promise<QmpClient> {
  const where = formatQmpAddress(address)
  const { host, path } = address
  try {
    if (host !== undefined) return await throughSsh(host, path)
    return await QmpClient.connect(path, STEP_MS, { keepsEvents: false, answerMs: STEP_MS })
  } catch (cause) {
    throw noAnswer(where, cause)
  }
}

/** What is told where a QEMU does not answer as it should. @param cause a ProxyError says all that there is to say */
export function noAnswer(where: string, cause: unknown): ProxyError {
  if (isProxyError(cause)) return cause
  const what = `no answer from QEMU at ${where}: ${(cause as Error).message}`
  const hint =
    'give the socket of -qmp unix:PATH,server=on; it serves one client at a time, so stop what else is connected'
  return new ProxyError('IO', what, undefined, hint, { cause })
}

/** What the other end says where it has nothing for Unix sockets. */
const NO_RELAY = 'neither socat nor nc is there'

/** ssh, which does all that is about hosts, users and keys; its other end is whatever that host has for Unix sockets. */
async function throughSsh(host: string, path: string): Promise<QmpClient> {
  const relay = `if command -v socat >/dev/null 2>&1; then exec socat - UNIX-CONNECT:${path}; elif command -v nc >/dev/null 2>&1; then exec nc -U ${path}; else echo ${NO_RELAY} >&2; fi`
  const args = ['-T', '-o', 'BatchMode=yes', '-o', 'ConnectTimeout=10', '--', host, `sh -c '${relay}'`]
  // a session of its own: Ctrl-C is for us, who want to hear of QEMU what became of it
  const ssh = spawn('ssh', args, { stdio: ['pipe', 'pipe', 'pipe'], detached: true })
  let says = ''
  let isMissing = false
  ssh.stderr.setEncoding('utf8').on('data', (text: string) => {
    says = (says + text).slice(-SSH_SAYS_CHARS)
  })
  const socket = Duplex.from({ writable: ssh.stdin, readable: ssh.stdout })
  const gone = new Promise<void>(done => {
    ssh.once('error', (error: NodeJS.ErrnoException) => {
      isMissing = error.code === 'ENOENT'
      says += error.message
      done()
    })
    ssh.once('close', () => done())
    // what it started may hold its streams
    ssh.once('exit', () => setTimeout(done, LAST_WORDS_MS).unref())
  })
  void gone.then(() => socket.destroy())
  socket.once('close', () => ssh.kill())
  try {
    return await QmpClient.open(socket, SSH_STEP_MS, { keepsEvents: false, answerMs: SSH_STEP_MS })
  } catch (error) {
    ssh.kill()
    await gone // what it says last
    if (says.trim() === '') throw error
    const lacks = (what: string, hint: string): ProxyError =>
      new ProxyError('IO', `no answer from QEMU at ${formatQmpAddress({ path, host })}: ${what}`, undefined, hint)
    if (isMissing) throw lacks('there is no ssh on this host', 'apt-get install openssh-client')
    if (says.includes(NO_RELAY)) throw lacks(NO_RELAY, 'install socat at that host')
    throw new Error(`${(error as Error).message}; ssh says: ${says.trim()}`, { cause: error })
  }
}
