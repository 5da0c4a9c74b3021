// Everything that the wrapper has; see README.md.
import { readFileSync, writeFileSync } from 'node:fs'

const [folder, prompt, state, out] = process.argv.slice(2)
const { EdgetokError, open, stream } = await import(`${folder}/node/index.mjs`)

const say = (name, value) => {
  const shown = Array.isArray(value) ? value.join(' ') : String(value)
  console.log(`${name}: ${JSON.stringify(shown).slice(1, -1).replaceAll('\\"', '"')}`)
}
const refused = (name, call) => {
  try { call() } catch (error) {
    if (!(error instanceof EdgetokError)) throw error
    say(name, error.message)
  }
}
const tokens = (answer) => Array.from(answer, (piece) => piece.token)
const written = (answer) => Array.from(answer, (piece) => piece.text).join('')
const flag = (value) => value ? 'True' : 'False'

await open(`${folder}/lib`).catch((error) => refused('no folder', () => { throw error }))
const model = await open(folder)
const info = model.describe()
say('info', [info.vocabSize, info.layers, info.kvBits, info.threads, info.family])
say('sha256', info.weightsSha256)
say('flags', [Number(info.tokenizes), Number(info.chats)])
const ids = model.encode(prompt)
say('ids', ids)
say('pieces', Buffer.concat(ids.map((token) => model.piece(token))).toString())
say('no piece', flag(model.piece(info.vocabSize) === null))

const chat = model.chat({ context: 256 })
say('no logits', flag(chat.logits() === null))
chat.sample({ maxTokens: 20 })
say('greedy', tokens(chat.prefill(ids)))
const logits = chat.logits()
say('logits', [logits.length, logits.indexOf(Math.max(...logits))])
const stats = chat.stats()
say('stats', [stats.tokens, stats.promptTokens, stats.cachedTokens, stats.answerTokens])
say('truncate', chat.truncate(3))
refused('nothing', () => tokens(chat.prefill([])))
say('again', tokens(chat.prefill(ids)))
say('cached', chat.stats().cachedTokens)
chat.sample({ maxTokens: 20, temperature: 0.8, topK: 40, topP: 0.95, seed: 2n ** 64n - 1n })
say('drawn', tokens(chat.prefill(ids)))
chat.sample({ maxTokens: 40, stop: ['never', ' girl'] })
say('stopped', written(chat.prefill(ids)))

chat.sample({ maxTokens: 20 })
const whole = [...ids, ...tokens(chat.prefill(ids))]
writeFileSync(out, chat.save())
say('saved', whole.slice(0, chat.stats().tokens))
say('tokens', chat.tokens())
const second = model.chat({ context: 256 })
second.restore(readFileSync(state), ids)
second.sample({ maxTokens: 20 })
say('restored', tokens(second.prefill([...ids, 5])))
say('restored cached', second.stats().cachedTokens)
refused('no state', () => second.restore(new Uint8Array(100).fill(120), ids))
second.close()

const bounded = model.chat({ context: 256, policy: 'window' })
bounded.sample({ maxTokens: 20 })
const first = Array.from(bounded.say('Hi! Who are you?', 'You are a pirate.'))
say('said', first.map((piece) => piece.text).join(''))
say('finish', first.at(-1).finish)
say('then', written(bounded.say('Tell me a story about a cat.')))
const later = model.chat({ context: 256, policy: 'window' })
later.loadSession(bounded.session())
later.sample({ maxTokens: 20 })
say('session', written(later.say('Why?')))
refused('no session', () => later.loadSession(new Uint8Array(100)))
later.close()
bounded.close()

// A timer runs between two tokens.
let seen = 0
for await (const piece of stream(chat.prefill(ids))) {
  if (++seen === 3) setImmediate(() => chat.cancel())
}
say('cancelled', seen)

refused('policy', () => model.chat({ policy: 'h2o' }))
refused('token', () => chat.prefill([info.vocabSize]))
refused('nul', () => chat.say('a\0b'))
refused('option', () => chat.sample({ topP: 2 }))

chat.close()
chat.close()
refused('closed chat', () => chat.prefill(ids))
const left = model.chat({ context: 64 })
model.close()
model.close()
refused('closed by model', () => left.stats())
refused('closed model', () => model.encode('x'))
