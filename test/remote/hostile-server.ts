/** A web server that gives out what it is told to, well or badly, one request after the other as its script says. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export type Answer = (request: IncomingMessage, response: ServerResponse) => void

export interface HostileServer {
  /** `http://127.0.0.1:PORT/store` */
  readonly url: string
  /** Method, path and range of each request. */
  readonly requests: string[]
  /** Answers to come, one a request; then {@link honest} ones. */
  readonly script: Answer[]
  readonly objects: Map<string, Buffer>
}

/** Serves `objects` by their keys, ranges and tags included, as a web server does, unless the script has something else. */
export async function hostileServer(teardown: (end: () => void) => void): Promise<HostileServer> {
  const requests: string[] = []
  const script: Answer[] = []
  const objects = new Map<string, Buffer>()
  const server = createServer((request, response) => {
    requests.push([request.method, request.url, request.headers.range].filter(Boolean).join(' '))
    const answer = script.shift() ?? honest(objects)
    answer(request, response)
  })
  teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
  const { port } = server.address() as AddressInfo
  return { url: `http://127.0.0.1:${port}/store`, requests, script, objects }
}

/** A tag of these bytes. */
export function tagOf(bytes: Buffer): string {
  return `"${bytes.length}-${bytes.length > 0 ? bytes[bytes.length - 1] : 0}"`
}

export function honest(objects: ReadonlyMap<string, Buffer>): Answer {
  return (request, response) => {
    const bytes = objects.get(decodeURIComponent((request.url ?? '').replace('/store/', '').replace(/\?.*/, '')))
    if (bytes === undefined) return void response.writeHead(404).end('there is none')
    const etag = tagOf(bytes)
    if (request.headers['if-none-match'] === etag) return void response.writeHead(304, { etag }).end()
    const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
    const isSame = (request.headers['if-range'] ?? etag) === etag
    if (from > 0 && from < bytes.length && isSame) {
      const rest = bytes.subarray(from)
      const range = `bytes ${from}-${bytes.length - 1}/${bytes.length}`
      response.writeHead(206, { etag, 'content-length': rest.length, 'content-range': range })
      return void response.end(request.method === 'HEAD' ? undefined : rest)
    }
    response.writeHead(200, { etag, 'content-length': bytes.length })
    response.end(request.method === 'HEAD' ? undefined : bytes)
  }
}

/** Promises all, gives so many bytes of what was asked for, and breaks off. */
export function breaksAfter(objects: ReadonlyMap<string, Buffer>, count: number): Answer {
  return (request, response) => {
    const { end } = response
    const cut = (bytes?: Buffer): ServerResponse => {
      response.end = end
      if (bytes === undefined) return response.end()
      response.write(bytes.subarray(0, count), () => response.socket!.end()) // a reset would take along what is under way
      return response
    }
    response.end = cut as typeof response.end
    honest(objects)(request, response)
  }
}

/** A head as it is told, and a body. */
export function says(
  status: number,
  headers: Record<string, string | number> = {},
  body: string | Buffer = '',
): Answer {
  return (_request, response) => void response.writeHead(status, headers).end(body)
}
