/** A process that fetches, to be killed: `node fetch-child.ts URL FOLDER DIGEST`. */
import { fetchSet } from '../../src/remote/fetcher.ts'
import { HttpStore } from '../../src/remote/http-store.ts'
import { TemplateStore } from '../../src/store/template-store.ts'

const [url, folder, digest] = process.argv.slice(2)
const store = new HttpStore(url!)
await fetchSet([store], new TemplateStore(folder!), digest!)
store.close()
