/** Something failed; says what the library said. */
export class EdgetokError extends Error {}

export type Finish = 'going' | 'stop' | 'length' | 'context' | 'cancelled'

/** A token of an answer, the text that it completes, and why it is the last. */
export interface Piece { token: number; text: string; finish: Finish }

export interface Info {
  vocabSize: number; contextTokens: number; layers: number; kvBits: number; blockTokens: number
  weightBytes: number; bufferBytes: number; threads: number; tokenizes: boolean; chats: boolean
  isa: string; family: string; weightsSha256: string
}

export interface Stats {
  tokens: number; position: number; slots: number; cacheBytes: number; promptTokens: number
  cachedTokens: number; answerTokens: number; prefillS: number; decodeS: number
}

/** By default the most likely token is taken until the model ends its answer. */
export interface Sampling {
  temperature?: number; topP?: number; minP?: number; topK?: number; seed?: number | bigint
  repetition?: number; presence?: number; frequency?: number
  /** 0: what the context holds. */
  maxTokens?: number
  /** Texts before which an answer ends. */
  stop?: string[]
}

export interface Chat {
  sample(sampling: Sampling): void
  /** Says something by the chat template; `system` belongs to the first turn. */
  say(text: string, system?: string | null): Generator<Piece, void>
  /** Makes `ids` the chat's tokens, keeping what the cache holds of them. */
  prefill(ids: ArrayLike<number>): Generator<Piece, void>
  cancel(): void
  /** Goes back to the first tokens, or fewer if some were evicted; returns how many. */
  truncate(tokens: number): number
  /** Ids of the chat's tokens, evicted ones included. */
  tokens(): number[]
  /** Of the last token computed; null before the first. */
  logits(): Float32Array | null
  stats(): Stats
  /** The cache; keep `tokens()` with it. */
  save(): Uint8Array
  restore(block: Uint8Array, ids: ArrayLike<number>): void
  /** The content of a session file, which `edgetok chat --session` opens. */
  session(): Uint8Array
  loadSession(file: Uint8Array): void
  close(): void
}

export interface Model {
  describe(): Info
  /** `special` adds what belongs around a text, such as `<s>`. */
  encode(text: string, special?: boolean): number[]
  piece(token: number): Uint8Array | null
  /** `context` in tokens; `budget` in bytes of a cache that evicts by `policy`, which is recall; 'none' evicts nothing. */
  chat(options?: { context?: number; budget?: number; policy?: string | null }): Chat
  /** Closes the model's chats, too. */
  close(): void
}

export interface Library {
  /** Files by name: model.plan and model.onnx.data. */
  open(files: Record<string, Uint8Array>): Model
}

/** Starts the library; `wasm` is edgetok.wasm. */
export function load(wasm: BufferSource): Promise<Library>
