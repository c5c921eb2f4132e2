/** Asks a running proxy over its control socket. */
import http from 'node:http'
import { setTimeout as after } from 'node:timers/promises'
import { ERROR_EXIT, type ErrorCode, ProxyError } from '../errors.ts'
import { CONTROL_ANSWER_BYTES_MAX } from '../limits.ts'

/** A proxy answers in milliseconds, on a machine that is busy too. */
export const ANSWER_MS = 30_000

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
  const text = await ask(path, request, body)
  let answer: unknown
  try {
    answer = JSON.parse(text)
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

/** Between one look and the next. */
export async function pause(ms: number): Promise<void> {
  await after(ms)
}

function ask(path: string, request: string, body?: object): Promise<string> {
  const [method, route] = request.split(' ')
  const content = body === undefined ? '' : JSON.stringify(body)
  return new Promise((done, failed) => {
    const signal = AbortSignal.timeout(ANSWER_MS)
    const asked = http.request({ socketPath: path, method, path: route, agent: false, signal }, response => {
      let text = ''
      response.setEncoding('utf8')
      response.on('data', (chunk: string) => {
        text += chunk
        if (text.length > CONTROL_ANSWER_BYTES_MAX) asked.destroy(strange(path))
      })
      response.on('end', () => done(text))
      response.on('error', error => failed(explained(path, error, signal)))
    })
    asked.on('error', error => failed(explained(path, error, signal)))
    asked.end(content)
  })
}

function explained(path: string, error: NodeJS.ErrnoException, signal: AbortSignal): ProxyError {
  if (error instanceof ProxyError) return error
  const { code = '' } = error
  if (signal.aborted) {
    const what = `no answer at ${path} for ${ANSWER_MS / 1000} s`
    return new ProxyError('IO', what, undefined, 'is it the control socket of a proxy, and is that stopped?')
  }
  if (!Object.hasOwn(HINTS, code)) return strange(path, error)
  return new ProxyError('IO', `no proxy answers at ${path} (${code})`, undefined, HINTS[code]!, { cause: error })
}

function strange(path: string, cause?: unknown): ProxyError {
  const what = `what answers at ${path} is no proxy`
  return new ProxyError('IO', what, undefined, 'give the path of `--control`', { cause })
}
