/** A real browser without a window, driven by the DevTools protocol over a WebSocket: just what report.test.ts needs. */
import type { ChildProcess } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { endChild, spawnOwned, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'

const NAMES = ['chromium-headless-shell', 'chromium', 'chromium-browser', 'google-chrome']
const START_MS = 60_000

/** The browser's program; undefined where none is installed. */
export function findBrowser(): string | undefined {
  // Debian's command in PATH is a script that stays between us and the program, and does not hand on signals
  const folders = ['/usr/lib/chromium', ...(process.env.PATH ?? '').split(':')]
  return NAMES.flatMap(name => folders.map(folder => join(folder, name))).find(path => existsSync(path))
}

interface Message {
  readonly id?: number
  readonly method?: string
  readonly params?: Record<string, unknown>
  readonly result?: Record<string, unknown>
  readonly error?: { readonly message: string }
}

/** One page of a browser of its own. */
export class BrowserPage implements AsyncDisposable {
  /** Events of the protocol since the page was opened. */
  readonly events: { readonly method: string; readonly params: Record<string, unknown> }[] = []
  private readonly child: ChildProcess
  private readonly socket: WebSocket
  private readonly remove: () => void
  private readonly waiting = new Map<number, { resolve: (result: Message) => void; reject: (error: Error) => void }>()
  private nextId = 0
  private session: string | undefined

  private constructor(child: ChildProcess, socket: WebSocket, remove: () => void) {
    this.child = child
    this.socket = socket
    this.remove = remove
    socket.addEventListener('message', event => this.take(JSON.parse(String(event.data)) as Message))
    socket.addEventListener('close', () => {
      for (const { reject } of this.waiting.values()) reject(new Error('the browser ended'))
    })
  }

  /** Starts a browser with an empty page. @throws Error with what it said */
  static async open(program: string): Promise<BrowserPage> {
    const { path: profile, remove } = temporaryFolder('browser')
    const options = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars']
    const child = spawnOwned([program, ...options, '--remote-debugging-port=0', `--user-data-dir=${profile}`], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    const address = await new Promise<string>((resolve, reject) => {
      let said = ''
      const give = (why: string): void => reject(new Error(`${program} ${why}: ${said.slice(-500)}`))
      const late = setTimeout(() => give('does not start'), START_MS)
      child.once('error', reject)
      child.once('exit', code => give(`ended with ${code}`))
      createInterface({ input: child.stderr! }).on('line', line => {
        said += `${line}\n`
        const found = /DevTools listening on (ws:\S+)/.exec(line)
        if (!found) return
        clearTimeout(late)
        resolve(found[1]!)
      })
    })
    const socket = new WebSocket(address)
    await new Promise((resolve, reject) => {
      socket.addEventListener('open', resolve)
      socket.addEventListener('error', () => reject(new Error(`no connection to ${address}`)))
    })
    const page = new BrowserPage(child, socket, remove)
    const { targetId } = await page.send('Target.createTarget', { url: 'about:blank' })
    const { sessionId } = await page.send('Target.attachToTarget', { targetId, flatten: true })
    page.session = sessionId as string
    for (const domain of ['Page', 'Runtime', 'Network', 'Log']) await page.send(`${domain}.enable`)
    return page
  }

  /** A command of the protocol. */
  async send(method: string, params: Record<string, unknown> = {}): Promise<Record<string, unknown>> {
    const id = ++this.nextId
    const answer = new Promise<Message>((resolve, reject) => this.waiting.set(id, { resolve, reject }))
    this.socket.send(JSON.stringify({ id, method, params, ...(this.session ? { sessionId: this.session } : {}) }))
    return (await answer).result ?? {}
  }

  /** Opens an address and waits until all of it is there. */
  async go(url: string): Promise<void> {
    const from = this.events.length
    await this.send('Page.navigate', { url })
    await this.until(() => this.events.slice(from).some(({ method }) => method === 'Page.loadEventFired'))
  }

  /** Value of an expression in the page. @throws Error where it throws */
  async evaluate<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = (await this.send('Runtime.evaluate', {
      expression,
      returnByValue: true,
      awaitPromise: true,
    })) as { result: { value: T }; exceptionDetails?: { text: string; exception?: { description?: string } } }
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text)
    return result.value
  }

  /** A window of this size, as a phone has it or not; light or dark. */
  async look(width: number, height: number, scheme: 'light' | 'dark'): Promise<void> {
    const mobile = width < 600
    await this.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile })
    await this.send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: scheme }] })
  }

  /** Moves the mouse to the middle of what a selector finds first, which is brought into view; `part` of its width. */
  async pointAt(selector: string, part = 0.5): Promise<{ x: number; y: number }> {
    const place = await this.evaluate<{ x: number; y: number }>(`(() => {
      const element = document.querySelector(${JSON.stringify(selector)})
      element.scrollIntoView({ block: 'center' })
      const box = element.getBoundingClientRect()
      return { x: box.left + box.width * ${part}, y: box.top + box.height / 2 }
    })()`)
    // scrolling hides tips; let its event pass first
    await this.evaluate('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')
    await this.send('Input.dispatchMouseEvent', { type: 'mouseMoved', ...place })
    return place
  }

  /** A picture of the window, or of the whole page: PNG. */
  async screenshot(whole = false): Promise<Buffer> {
    const { data } = await this.send('Page.captureScreenshot', { format: 'png', captureBeyondViewport: whole })
    return Buffer.from(data as string, 'base64')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.session = undefined
    await this.send('Browser.close').catch(() => {})
    this.socket.close()
    await endChild(this.child)
    this.child.stderr!.destroy()
    this.remove()
  }

  private take(message: Message): void {
    if (message.id === undefined) {
      if (message.method) this.events.push({ method: message.method, params: message.params ?? {} })
      return
    }
    const waiting = this.waiting.get(message.id)
    this.waiting.delete(message.id)
    if (message.error) waiting?.reject(new Error(message.error.message))
    else waiting?.resolve(message)
  }

  private async until(condition: () => boolean): Promise<void> {
    for (const endMs = performance.now() + START_MS; !condition(); ) {
      if (performance.now() > endMs) throw new Error('the page does not load')
      await new Promise(done => setTimeout(done, 20))
    }
  }
}
