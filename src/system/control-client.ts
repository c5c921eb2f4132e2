/** Asks a running proxy over its control socket. */
import http from 'node:http'
import { clearTimeout, setTimeout } from 'node:timers'
import { setTimeout as after } from 'node:timers/promises'
import { ERROR_EXIT, type ErrorCode, ProxyError } from '../errors.ts'
import { CONTROL_ANSWER_BYTES_MAX } from '../limits.ts'

/** A proxy answers in milliseconds, on a machine that is busy too. */
export const ANSWER_MS = 30_000

/** Who asks each second asks over the same connection: a new one costs more than an answer. It keeps no command from its end. */
const AGENT = new http.Agent({ keepAlive: true })

const HINTS: Readonly<Record<string, string>> = {
  ENOENT: 'is the proxy running, and with `--control` at this path?',
  EACCES: 'ask as root, or as the user that the proxy runs as',
  EPERM: 'ask as root, or as the user that the proxy runs as',
  ECONNREFUSED: 'the proxy that made it is gone: start it again',
  ECONNRESET: 'it was ended just now, or is very busy: ask again',
  ENOTSOCK: 'this is no socket: give the path of `--control`',
}

/**
 * @param request 'GET /status'
 * @param body of a POST, becomes JSON
 * @returns the answer, parsed; its shape is the caller's to check
 * @throws ProxyError what the proxy says, or IO where nobody answers as a proxy does
 */
export async function askProxy(path: string, request: string, body?: object): Promise<unknown> {
  return parse(path, await askForBytes(path, request, body))
}

/** What came in answer. @throws ProxyError as {@link askProxy} */
export function parse(path: string, bytes: Uint8Array): unknown {
  let answer: unknown
  try {
    answer = JSON.parse(Buffer.from(bytes).toString())
  } catch (cause) {
    throw strange(path, cause)
  }
  const { error } = (answer ?? {}) as { error?: { code?: unknown; what?: unknown; action?: unknown } }
  if (error === undefined) return answer
  const { code, what, action } = error
  if (typeof code !== 'string' || typeof what !== 'string' || typeof action !== 'string') throw strange(path)
  // a newer proxy may have codes that are not known here
  throw new ProxyError(Object.hasOwn(ERROR_EXIT, code) ? (code as ErrorCode) : 'INTERNAL', what, undefined, action)
}

/** @returns what keeps it from being called: a timer that runs out for nothing wakes the process */
export function callAfter(ms: number, call: () => void): () => void {
  const timer = setTimeout(call, ms)
  return () => clearTimeout(timer)
}

/** Between one look and the next. */
export async function pause(ms: number): Promise<void> {
  await after(ms)
}

/** @returns the answer as it came, for who passes it on. @throws ProxyError IO where none came */
export function askForBytes(path: string, request: string, body?: object): Promise<Buffer> {
  const [method, route] = request.split(' ')
  const content = body === undefined ? '' : JSON.stringify(body)
  return new Promise((done, failed) => {
    const asked = http.request({ socketPath: path, method, path: route, agent: AGENT }, response => {
      const chunks: Buffer[] = []
      let length = 0
      response.on('data', (chunk: Buffer) => {
        chunks.push(chunk)
        length += chunk.length
        if (length > CONTROL_ANSWER_BYTES_MAX) asked.destroy(strange(path))
      })
      response.on('end', () => {
        inTime()
        done(Buffer.concat(chunks))
      })
      response.on('error', fail)
    })
    const fail = (error: NodeJS.ErrnoException): void => {
      inTime()
      // a proxy closes what was kept for long: this process stood still meanwhile
      const isStale =
        asked.reusedSocket && body === undefined && (error.code === 'ECONNRESET' || error.code === 'EPIPE')
      // a reset in the middle of an answer is told twice, by the question and by the answer
      if (isStale) askForBytes(path, request).then(done, failed)
      else failed(explained(path, error))
    }
    const inTime = callAfter(ANSWER_MS, () => {
      const what = `no answer at ${path} for ${ANSWER_MS / 1000} s`
      const hint = 'is it the control socket of a proxy, and is that stopped?'
      asked.destroy(new ProxyError('IO', what, undefined, hint))
    })
    asked.on('error', fail)
    asked.end(content)
  })
}

function explained(path: string, error: NodeJS.ErrnoException): ProxyError {
  if (error instanceof ProxyError) return error
  const { code = '' } = error
  if (!Object.hasOwn(HINTS, code)) return strange(path, error)
  return new ProxyError('IO', `no proxy answers at ${path} (${code})`, undefined, HINTS[code]!, { cause: error })
}

function strange(path: string, cause?: unknown): ProxyError {
  const what = `what answers at ${path} is no proxy`
  return new ProxyError('IO', what, undefined, 'give the path of `--control`', { cause })
}
