/** What tests of inputs look at: which of the numbered pages (test/template/makers.ts) an input gives. */
import { PageInput, type PageInputOptions } from '../../src/capture/pages.ts'
import { PAGE, page } from '../template/makers.ts'

/** The numbers of the pages that an input gives, in order. @throws where one is not that page to the byte */
export async function pageNumbers(path: string, options: PageInputOptions = {}): Promise<number[]> {
  const input = await PageInput.open(path, options)
  try {
    const numbers: number[] = []
    for await (const batch of input.pages()) {
      for (let i = 0; i < batch.count; i++) {
        const bytes = batch.bytes.subarray(i * PAGE, (i + 1) * PAGE)
        const number = bytes.readUInt32LE(8)
        if (!page(number).equals(bytes)) throw new Error(`page ${numbers.length} is wrong`)
        numbers.push(number)
      }
      batch.release()
    }
    return numbers
  } finally {
    input.close()
  }
}
