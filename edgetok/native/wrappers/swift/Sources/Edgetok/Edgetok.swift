// libedgetok for Apple's systems. A chat keeps its model open, and both are freed when nobody holds
// them, or by `close()`; closing a model closes its chats. Calls of several threads on one chat wait
// for each other; `cancel` and `close` end what another thread computes.
//
//     let model = try Model(folder: path)
//     let chat = try model.chat()
//     for try await piece in try chat.say("Hello") { print(piece.text, terminator: "") }

import CEdgetok
import Foundation

/// Something failed; says what the library said.
public struct EdgetokError: Error, Equatable, CustomStringConvertible {
    public let description: String
}

/// What a model is; see `edgetok_info` of edgetok.h.
public struct Info: Sendable {
    public let vocabSize, contextTokens, layers, kvBits, blockTokens, weightBytes, bufferBytes: Int
    public let threads: Int
    public let tokenizes, chats: Bool
    public let isa, family, weightsSha256: String
}

/// What a chat holds and took; see `edgetok_stats_t` of edgetok.h.
public struct Stats: Sendable {
    public let tokens, position, slots, cacheBytes, promptTokens, cachedTokens, answerTokens: Int
    public let prefillS, decodeS: Double
}

/// How answers are sampled. By default the most likely token is taken; 0 switches an option off.
public struct Sampling: Sendable {
    public var temperature = 0.0, topP = 0.0, minP = 0.0
    public var repetitionPenalty = 0.0, presencePenalty = 0.0, frequencyPenalty = 0.0
    public var topK = 0, maxTokens = 0
    public var seed: UInt64 = 0
    public var stop: [String] = []
    public init() {}
}

public enum Finish: Int, Sendable { case going, stop, length, context, cancelled }

/// A token of an answer, the text that it completes, and why it is the last.
public struct Piece: Sendable {
    public let token: Int32
    public let text: String
    public let finish: Finish
}

/// A handle of the library, freed once.
final class Handle: @unchecked Sendable {
    private let use = NSRecursiveLock()  // one call at a time
    private let life = NSLock()  // what `cancel` and freeing take
    private let what: String
    private let free: (OpaquePointer) -> Void
    private var pointer: OpaquePointer?

    init(_ what: String, _ pointer: OpaquePointer, free: @escaping (OpaquePointer) -> Void) {
        (self.what, self.pointer, self.free) = (what, pointer, free)
    }

    deinit { if let pointer = pointer { free(pointer) } }

    func call<T>(_ function: (OpaquePointer) throws -> T) throws -> T {
        use.lock()
        defer { use.unlock() }
        guard let pointer = pointer else { throw EdgetokError(description: "the \(what) is closed") }
        return try function(pointer)
    }

    func beside(_ function: (OpaquePointer) -> Void) {
        life.lock()
        defer { life.unlock() }
        if let pointer = pointer { function(pointer) }
    }

    func close(before: () -> Void = {}) {
        use.lock()
        defer { use.unlock() }
        before()
        life.lock()
        defer { life.unlock() }
        if let pointer = pointer { free(pointer) }
        pointer = nil
    }
}

/// A folder that `edgetok export --format native` wrote, opened.
public final class Model: @unchecked Sendable {
    let handle: Handle
    private var chats: [WeakChat] = []
    private struct WeakChat { weak var chat: Chat? }

    /// `threads`: 0 for one a performance core; `verify` compares the weights with their sha256.
    public init(folder: String, threads: Int32 = 0, verify: Bool = false) throws {
        try plain(folder)
        let opened = try told { edgetok_open(folder, threads, verify ? 1 : 0, $0) }
        handle = Handle("model", opened, free: { edgetok_close($0) })
    }

    /// Closes the model's chats, then the model.
    public func close() {
        handle.close(before: { for one in chats { one.chat?.close() } })
    }

    public func info() throws -> Info {
        try handle.call { model in
            var i = edgetok_info()
            edgetok_describe(model, &i)
            let sha256 = withUnsafeBytes(of: i.weights_sha256) { String(decoding: $0.prefix(64), as: UTF8.self) }
            return Info(
                vocabSize: Int(i.vocab_size), contextTokens: Int(i.context_tokens), layers: Int(i.layers),
                kvBits: Int(i.kv_bits), blockTokens: Int(i.block_tokens), weightBytes: Int(i.weight_bytes),
                bufferBytes: Int(i.buffer_bytes), threads: Int(i.threads), tokenizes: i.tokenizes != 0,
                chats: i.chats != 0, isa: String(cString: i.isa), family: String(cString: i.family),
                weightsSha256: sha256)
        }
    }

    /// A text's tokens; `special` adds what belongs around one, such as `<s>`.
    public func encode(_ text: String, special: Bool = true) throws -> [Int32] {
        try handle.call { model in
            let bytes = text.utf8.count
            var count = 2 * bytes + 16
            while true {
                let room = count
                var ids = [Int32](repeating: 0, count: room)
                count = Int(try told { error in
                    text.withCString { edgetok_encode(model, $0, bytes, special ? 1 : 0, &ids, room, error) }
                })
                if count <= room { return Array(ids.prefix(count)) }
            }
        }
    }

    /// The bytes that a token stands for; nil for no such token.
    public func piece(_ token: Int32) throws -> Data? {
        try handle.call { model in
            var bytes = 0
            return edgetok_piece(model, token, &bytes).map { Data(bytes: $0, count: bytes) }
        }
    }

    /// A conversation: with a context, or with what its cache may take; `policy` nil is recall.
    public func chat(contextTokens: Int = 0, budgetBytes: Int = 0, policy: String? = nil) throws -> Chat {
        try handle.call { model in
            let made: OpaquePointer = try optional(policy) { name in
                var cache = edgetok_cache(
                    context_tokens: Int64(contextTokens), budget_bytes: Int64(budgetBytes), policy: name)
                return try told { edgetok_chat_new(model, &cache, $0) }
            }
            let chat = Chat(self, made)
            chats = chats.filter { $0.chat != nil } + [WeakChat(chat: chat)]
            return chat
        }
    }
}

/// A conversation with a cache of its own; `Model.chat` makes one.
public final class Chat: @unchecked Sendable {
    private let handle: Handle
    private let model: Model

    fileprivate init(_ model: Model, _ pointer: OpaquePointer) {
        self.model = model
        // The model's handle is held, so that it is freed after the chat.
        let kept = model.handle
        handle = Handle("chat", pointer, free: { pointer in withExtendedLifetime(kept) { edgetok_chat_free(pointer) } })
    }

    public func close() {
        cancel()  // what another thread computes, so that the lock is free soon
        handle.close()
    }

    /// Ends a prefill or an answer that another thread computes.
    public func cancel() { handle.beside { edgetok_cancel($0) } }

    /// Sets how the answers after the next `say` or `prefill` are sampled.
    public func sample(_ s: Sampling) throws {
        try s.stop.forEach(plain)
        let texts = s.stop.map { strdup($0) }
        defer { texts.forEach { free($0) } }
        let stop = texts.map { UnsafePointer($0) }
        try handle.call { chat in
            try stop.withUnsafeBufferPointer { stop in
                var given = edgetok_sampling(
                    temperature: s.temperature, top_p: s.topP, min_p: s.minP,
                    repetition_penalty: s.repetitionPenalty, presence_penalty: s.presencePenalty,
                    frequency_penalty: s.frequencyPenalty, top_k: Int64(s.topK), seed: s.seed,
                    max_tokens: Int64(s.maxTokens), stop: stop.baseAddress, stops: stop.count)
                _ = try told { edgetok_sample(chat, &given, $0) }
            }
        }
    }

    /// Says something by the chat template; `system` belongs to the first turn. Returns the answer.
    public func say(_ text: String, system: String? = nil) throws -> Answer {
        try plain(text)
        try handle.call { chat in
            _ = try optional(system) { system in try told { edgetok_say(chat, system, text, $0) } }
        }
        return Answer(self)
    }

    /// Makes `ids` the chat's tokens, keeping what the cache holds of them. Returns the answer.
    public func prefill(_ ids: [Int32]) throws -> Answer {
        try handle.call { chat in _ = try told { edgetok_prefill(chat, ids, ids.count, $0) } }
        return Answer(self)
    }

    /// The next token of the answer; nil when it is over.
    public func next() throws -> Piece? {
        try handle.call { chat in
            var o = edgetok_output()
            guard try told({ edgetok_next(chat, &o, $0) }) > 0 else { return nil }
            let text = UnsafeRawBufferPointer(start: o.text, count: o.bytes)
            return Piece(
                token: o.token, text: String(decoding: text, as: UTF8.self),
                finish: Finish(rawValue: Int(o.finish)) ?? .cancelled)
        }
    }

    /// Goes back to the first tokens, or fewer if some were evicted; returns how many.
    public func truncate(_ tokens: Int) throws -> Int {
        try handle.call { chat in Int(try told { edgetok_truncate(chat, Int64(tokens), $0) }) }
    }

    /// Ids of the chat's tokens, evicted ones included.
    public func tokens() throws -> [Int32] {
        try handle.call { chat in
            let count = Int(edgetok_tokens(chat, nil, 0))
            var ids = [Int32](repeating: 0, count: count)
            _ = edgetok_tokens(chat, &ids, count)
            return ids
        }
    }

    /// Of the last token computed; nil before the first.
    public func logits() throws -> [Float]? {
        let size = try model.info().vocabSize
        return try handle.call { chat in
            edgetok_logits(chat).map { Array(UnsafeBufferPointer(start: $0, count: size)) }
        }
    }

    public func stats() throws -> Stats {
        try handle.call { chat in
            var s = edgetok_stats_t()
            edgetok_stats(chat, &s)
            return Stats(
                tokens: Int(s.tokens), position: Int(s.position), slots: Int(s.slots),
                cacheBytes: Int(s.cache_bytes), promptTokens: Int(s.prompt_tokens),
                cachedTokens: Int(s.cached_tokens), answerTokens: Int(s.answer_tokens),
                prefillS: s.prefill_s, decodeS: s.decode_s)
        }
    }

    /// The cache, for `restore` or for edgetok in Python; keep `tokens` with it.
    public func save() throws -> Data { try saved(edgetok_save) }

    /// Takes over a cache that was computed from `ids`.
    public func restore(_ block: Data, ids: [Int32]) throws {
        try handle.call { chat in
            _ = try block.withUnsafeBytes { from in
                try told { edgetok_restore(chat, from.baseAddress, from.count, ids, ids.count, $0) }
            }
        }
    }

    /// The content of a session file, which `edgetok chat --session` opens.
    public func session() throws -> Data { try saved(edgetok_session_save) }

    /// Goes on with the conversation of a session file, which Python may have written.
    public func loadSession(_ file: Data) throws {
        try handle.call { chat in
            _ = try file.withUnsafeBytes { from in
                try told { edgetok_session_load(chat, from.baseAddress, from.count, $0) }
            }
        }
    }

    /// The bytes of a call that returns how many it needs, and writes them if they fit.
    private func saved(
        _ call: (OpaquePointer?, UnsafeMutableRawPointer?, Int, UnsafeMutablePointer<CChar>?) -> Int64
    ) throws -> Data {
        try handle.call { chat in
            var block = Data(count: Int(try told { call(chat, nil, 0, $0) }))
            let size = block.count
            _ = try block.withUnsafeMutableBytes { to in try told { call(chat, to.baseAddress, size, $0) } }
            return block
        }
    }
}

/// An answer: a sequence of its tokens, computed as they are asked for, here or on another thread.
public struct Answer: AsyncSequence, Sendable {
    public typealias Element = Piece
    private let chat: Chat

    fileprivate init(_ chat: Chat) { self.chat = chat }

    /// All of it, on this thread.
    public func forEach(_ body: (Piece) throws -> Void) throws {
        while let piece = try chat.next() { try body(piece) }
    }

    public struct AsyncIterator: AsyncIteratorProtocol {
        fileprivate let chat: Chat

        /// Computed off the caller's thread; nothing more once the task is cancelled.
        public mutating func next() async throws -> Piece? {
            let chat = chat
            return try await withTaskCancellationHandler(
                operation: { try await Task.detached { try chat.next() }.value },
                onCancel: { chat.cancel() })
        }
    }

    public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(chat: chat) }
}

/// Calls with room for an error, and throws its text if the result is NULL.
private func told<T>(_ call: (UnsafeMutablePointer<CChar>) throws -> T?) throws -> T {
    var error = [CChar](repeating: 0, count: Int(EDGETOK_ERROR_BYTES))
    guard let result = try call(&error) else { throw EdgetokError(description: String(cString: error)) }
    return result
}

/// Calls with room for an error, and throws its text if the result is negative.
private func told<T: SignedInteger>(_ call: (UnsafeMutablePointer<CChar>) throws -> T) throws -> T {
    var error = [CChar](repeating: 0, count: Int(EDGETOK_ERROR_BYTES))
    let result = try call(&error)
    if result < 0 { throw EdgetokError(description: String(cString: error)) }
    return result
}

private func plain(_ text: String) throws {
    if text.utf8.contains(0) { throw EdgetokError(description: "a text holds a NUL character; remove it") }
}

private func optional<T>(_ text: String?, _ call: (UnsafePointer<CChar>?) throws -> T) throws -> T {
    guard let text = text else { return try call(nil) }
    try plain(text)
    return try text.withCString(call)
}
