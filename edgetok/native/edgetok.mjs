// Runs edgetok.wasm, in node or in a browser: the functions of edgetok.h, with JavaScript's values.
//
//     const library = await load(wasmBytes)
//     const model = library.open({ 'model.plan': bytes, 'model.onnx.data': bytes })
//     const chat = model.chat({ context: 1024 })
//     chat.sample({ temperature: 0.7, topK: 40, seed: 1n })
//     for (const { token, text } of chat.say('Hello')) ...
//
// Files are Uint8Arrays; they are copied into the module's memory once and may be dropped then.
// Close what you open: `close` of a model frees its chats; a call after it is an error.

const ERROR_BYTES = 256
export const FINISH = ['going', 'stop', 'length', 'context', 'cancelled']

export class EdgetokError extends Error {
  name = 'EdgetokError'
}

export async function load(source) {
  const files = new Map()
  let memory
  const view = () => new DataView(memory.buffer)
  const bytes = (at, count) => new Uint8Array(memory.buffer, at >>> 0, count)
  const textAt = (at) => {
    const every = new Uint8Array(memory.buffer)
    return new TextDecoder().decode(every.slice(at >>> 0, every.indexOf(0, at >>> 0)))
  }
  const fileAt = (at) => files.get(textAt(at).replace(/^\.\//, ''))
  const host = {
    file_bytes: (path) => fileAt(path)?.length ?? -1,
    file_read: (path, to) => { const data = fileAt(path); bytes(to, data.length).set(data) },
    seconds: () => performance.now() / 1000,
  }
  // What the C library may ask of a system: nothing that is ever called.
  const none = new Proxy({}, { get: () => () => 52 })
  const { instance } = await WebAssembly.instantiate(source, { edgetok: host, wasi_snapshot_preview1: none })
  const c = instance.exports
  memory = c.memory
  c._initialize?.()

  // Memory for one call, freed after it.
  const within = (call) => {
    const taken = []
    const room = (count) => {
      const at = c.malloc(count) >>> 0
      if (at === 0) throw new EdgetokError(`no memory for ${count} bytes`)
      taken.push(at)
      bytes(at, count).fill(0)
      return at
    }
    const put = (data) => { const at = room(data.length + 1); bytes(at, data.length).set(data); return at }
    const text = (value) => {
      if (value.includes('\0')) throw new EdgetokError('a text holds a NUL character; remove it')
      return put(new TextEncoder().encode(value))
    }
    try { return call({ room, put, text }) }
    finally { taken.forEach((at) => c.free(at)) }
  }
  const checked = (call) => within((m) => {
    const error = m.room(ERROR_BYTES)
    const result = call(m, error)
    if (result === 0 && textAt(error) || result < 0) throw new EdgetokError(textAt(error) || 'the call failed')
    return result
  })
  const ids32 = (m, ids) => m.put(new Uint8Array(Int32Array.from(ids).buffer))
  const number = (at, i) => Number(view().getBigInt64(at + 8 * i, true))

  // A handle of the library: what is called with it is an error once it is freed.
  class Owned {
    #handle
    #free
    #what
    constructor(handle, free, what) { this.#handle = handle; this.#free = free; this.#what = what }
    get handle() {
      if (this.#handle === 0) throw new EdgetokError(`the ${this.#what} is closed`)
      return this.#handle
    }
    close() {
      if (this.#handle !== 0) this.#free(this.#handle)
      this.#handle = 0
    }
  }

  class Chat extends Owned {
    #model
    constructor(model, { context = 0, budget = 0, policy = null }) {
      super(checked((m, error) => {
        const options = m.room(24)
        view().setBigInt64(options, BigInt(context), true)
        view().setBigInt64(options + 8, BigInt(budget), true)
        view().setUint32(options + 16, policy ? m.text(policy) : 0, true)
        return c.edgetok_chat_new(model.handle, options, error) >>> 0
      }), c.edgetok_chat_free, 'chat')
      this.#model = model
      model.opened.add(this)
    }

    sample({ temperature = 0, topP = 0, minP = 0, repetition = 0, presence = 0, frequency = 0, topK = 0, seed = 0n, maxTokens = 0, stop = [] }) {
      checked((m, error) => {
        const at = m.room(80), texts = m.room(4 * stop.length + 4)
        const list = stop.map((text) => m.text(text))
        list.forEach((text, i) => view().setUint32(texts + 4 * i, text, true))
        ;[temperature, topP, minP, repetition, presence, frequency].forEach((v, i) => view().setFloat64(at + 8 * i, v, true))
        view().setBigInt64(at + 48, BigInt(topK), true)
        view().setBigUint64(at + 56, BigInt.asUintN(64, BigInt(seed)), true)
        view().setBigInt64(at + 64, BigInt(maxTokens), true)
        view().setUint32(at + 72, texts, true)
        view().setUint32(at + 76, stop.length, true)
        return c.edgetok_sample(this.handle, at, error)
      })
    }

    * #answer() {
      while (true) {
        const found = checked((m, error) => {
          const at = m.room(16)
          if (c.edgetok_next(this.handle, at, error) === 0) return 1
          if (textAt(error)) return -1
          const text = bytes(view().getUint32(at + 8, true), view().getUint32(at + 12, true))
          return { token: view().getInt32(at, true), finish: FINISH[view().getInt32(at + 4, true)], text: new TextDecoder().decode(text.slice()) }
        })
        if (found === 1) return
        yield found
      }
    }

    prefill(ids) {
      checked((m, error) => c.edgetok_prefill(this.handle, ids32(m, ids), ids.length, error))
      return this.#answer()
    }

    say(text, system = null) {
      checked((m, error) => c.edgetok_say(this.handle, system === null ? 0 : m.text(system), m.text(text), error))
      return this.#answer()
    }

    // Call it between the tokens of an answer; there are no threads here.
    cancel() { c.edgetok_cancel(this.handle) }

    truncate(tokens) {
      return Number(checked((m, error) => c.edgetok_truncate(this.handle, BigInt(tokens), error)))
    }

    // Ids of the chat's tokens, evicted ones included.
    tokens() {
      return within((m) => {
        const count = Number(c.edgetok_tokens(this.handle, 0, 0)), at = m.room(4 * count + 4)
        c.edgetok_tokens(this.handle, at, count)
        return Array.from(new Int32Array(memory.buffer.slice(at, at + 4 * count)))
      })
    }

    // Of the last token computed, copied; null before the first.
    logits() {
      const size = this.#model.describe().vocabSize // before the memory is looked at: it may grow
      const at = c.edgetok_logits(this.handle) >>> 0
      return at === 0 ? null : new Float32Array(memory.buffer.slice(at, at + 4 * size))
    }

    stats() {
      return within((m) => {
        const at = m.room(72)
        c.edgetok_stats(this.handle, at)
        const names = ['tokens', 'position', 'slots', 'cacheBytes', 'promptTokens', 'cachedTokens', 'answerTokens']
        const [prefillS, decodeS] = [56, 64].map((offset) => view().getFloat64(at + offset, true))
        return { ...Object.fromEntries(names.map((name, i) => [name, number(at, i)])), prefillS, decodeS }
      })
    }

    #saved(call) {
      const size = Number(checked((m, error) => call(this.handle, 0, 0, error)))
      return checked((m, error) => {
        const at = m.room(size)
        return call(this.handle, at, size, error) < 0n ? -1 : bytes(at, size).slice()
      })
    }

    // The cache as a Uint8Array; keep `tokens()` with it.
    save() {
      return this.#saved((chat, at, size, error) => c.edgetok_save(chat, at, size, error))
    }

    // The content of a session file, which `edgetok chat --session` opens.
    session() {
      return this.#saved((chat, at, size, error) => c.edgetok_session_save(chat, at, size, error))
    }

    // Goes on with the conversation of a session file, which Python may have written.
    loadSession(file) {
      checked((m, error) => c.edgetok_session_load(this.handle, m.put(file), file.length, error))
    }

    restore(block, ids) {
      checked((m, error) => c.edgetok_restore(this.handle, m.put(block), block.length, ids32(m, ids), ids.length, error))
    }

    close() {
      super.close()
      this.#model.opened.delete(this)
    }
  }

  class Model extends Owned {
    opened = new Set()
    constructor(handle) { super(handle, c.edgetok_close, 'model') }

    describe() {
      return within((m) => {
        const at = m.room(144)
        c.edgetok_describe(this.handle, at)
        const names = ['vocabSize', 'contextTokens', 'layers', 'kvBits', 'blockTokens', 'weightBytes', 'bufferBytes']
        const flag = (offset) => view().getInt32(at + offset, true)
        return {
          ...Object.fromEntries(names.map((name, i) => [name, number(at, i)])),
          threads: flag(56), tokenizes: flag(60) !== 0, chats: flag(64) !== 0,
          isa: textAt(view().getUint32(at + 68, true)), family: textAt(view().getUint32(at + 72, true)),
          weightsSha256: textAt(at + 76),
        }
      })
    }

    encode(text, special = true) {
      const data = new TextEncoder().encode(text)
      for (let most = 2 * data.length + 16; ;) {
        const found = checked((m, error) => {
          const ids = m.room(4 * most)
          const count = Number(c.edgetok_encode(this.handle, m.put(data), data.length, Number(special), ids, most, error))
          return count < 0 || count > most ? count : Array.from(new Int32Array(memory.buffer.slice(ids, ids + 4 * count)))
        })
        if (Array.isArray(found)) return found
        most = found
      }
    }

    // The bytes of a token; null for no such token.
    piece(token) {
      return within((m) => {
        const size = m.room(4), at = c.edgetok_piece(this.handle, token, size)
        return at === 0 ? null : bytes(at, view().getUint32(size, true)).slice()
      })
    }

    chat(options = {}) { return new Chat(this, options) }

    close() {
      this.opened.forEach((chat) => chat.close())
      super.close()
    }
  }

  return {
    open(given) {
      try {
        Object.entries(given).forEach(([name, data]) => files.set(name, data))
        return new Model(checked((m, error) => c.edgetok_open(m.text('.'), 1, 0, error) >>> 0))
      } finally {
        files.clear()
      }
    },
  }
}
