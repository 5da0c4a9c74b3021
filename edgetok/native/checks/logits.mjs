// Writes the logits after prompts: node logits.mjs LIBRARY_FOLDER FOLDER CONTEXT OUT ID ... [, ID ...]
// Prints that it began, then the instruction set. See native/elsewhere.py.
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const [library, folder, context, out, ...ids] = process.argv.slice(2)
console.log('began')
const { load } = await import(pathToFileURL(`${library}/edgetok.mjs`))
const edgetok = await load(readFileSync(`${library}/edgetok.wasm`))
const files = ['model.plan', 'model.onnx.data'].map((name) => [name, readFileSync(`${folder}/${name}`)])
const model = edgetok.open(Object.fromEntries(files))
const chat = model.chat({ context: Number(context) })
const file = openSync(out, 'w')
for (const prompt of ids.join(' ').split(' , ')) {
  chat.prefill(prompt.split(' ').map(Number))
  writeSync(file, new Uint8Array(chat.logits().buffer))
}
closeSync(file)
console.log(model.describe().isa)
