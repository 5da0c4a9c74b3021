// An exported folder in node. Tokens are computed on the thread that asks for them; `stream` lets
// other events run between them, so that a timer or a request may call `chat.cancel()`.
//
//     const model = await open('app')
//     const chat = model.chat()
//     for await (const { text } of stream(chat.say('Hello'))) process.stdout.write(text)
//     model.close()

import { open as openFile } from 'node:fs/promises'
import { join } from 'node:path'
import { EdgetokError, load } from './edgetok.mjs'

export { EdgetokError }

// In parts: one call of node reads less than 2 GB.
const PART_BYTES = 2 ** 30

async function read(path) {
  let file
  try {
    file = await openFile(path)
    const data = new Uint8Array((await file.stat()).size)
    for (let at = 0; at < data.length;) {
      const { bytesRead } = await file.read(data, at, Math.min(PART_BYTES, data.length - at), at)
      if (bytesRead === 0) throw new Error('it became shorter')
      at += bytesRead
    }
    return data
  } catch (error) {
    throw new EdgetokError(`${path}: cannot be read: ${error.message}`)
  } finally {
    await file?.close()
  }
}

export async function open(folder) {
  const wasm = await read(new URL('./edgetok.wasm', import.meta.url))
  const names = ['model.plan', 'model.onnx.data']
  const files = await Promise.all(names.map((name) => read(join(folder, name))))
  const library = await load(wasm)
  return library.open(Object.fromEntries(names.map((name, i) => [name, files[i]])))
}

export async function* stream(answer) {
  for (const piece of answer) {
    yield piece
    await new Promise((resolve) => setImmediate(resolve))
  }
}
