// Prints N greedy tokens after a prompt: node example.mjs FOLDER "prompt" N [--ids]
import { EdgetokError, open } from './index.mjs'

const [folder, prompt, count, flag] = process.argv.slice(2)
try {
  const model = await open(folder)
  const chat = model.chat()
  chat.sample({ maxTokens: Number(count) })
  for (const { token, text } of chat.prefill(model.encode(prompt))) {
    process.stdout.write(flag === '--ids' ? `${token} ` : text)
  }
  process.stdout.write('\n')
  model.close()
} catch (error) {
  if (!(error instanceof EdgetokError)) throw error
  console.error(error.message)
  process.exitCode = 1
}
