// Everything that the wrapper has; see README.md.
import Edgetok
import Foundation

func say(_ name: String, _ value: Any) {
    print("\(name): " + "\(value)".replacingOccurrences(of: "\n", with: "\\n"))
}

func refused(_ name: String, _ call: () throws -> Void) {
    do { try call() } catch let error as EdgetokError { say(name, error) } catch { fatalError() }
}

func joined(_ ids: [Int32]) -> String { ids.map(String.init).joined(separator: " ") }

func all(_ answer: Answer) throws -> [Piece] {
    var pieces: [Piece] = []
    try answer.forEach { pieces.append($0) }
    return pieces
}

func tokens(_ answer: Answer) throws -> [Int32] { try all(answer).map { $0.token } }
func text(_ answer: Answer) throws -> String { try all(answer).map { $0.text }.joined() }

func sampling(_ maxTokens: Int, _ change: (inout Sampling) -> Void = { _ in }) -> Sampling {
    var made = Sampling()
    made.maxTokens = maxTokens
    change(&made)
    return made
}

let arguments = CommandLine.arguments
let (folder, prompt, state, out) = (arguments[1], arguments[2], arguments[3], arguments[4])
refused("no folder") { _ = try Model(folder: folder + "/lib") }
let model = try Model(folder: folder, threads: 1, verify: true)
let info = try model.info()
say("info", "\(info.vocabSize) \(info.layers) \(info.kvBits) \(info.threads) \(info.family)")
say("sha256", info.weightsSha256)
say("flags", "\(info.tokenizes ? 1 : 0) \(info.chats ? 1 : 0)")
let ids = try model.encode(prompt)
say("ids", joined(ids))
let pieces = try ids.reduce(into: Data()) { $0.append(try model.piece($1)!) }
say("pieces", String(decoding: pieces, as: UTF8.self))
say("no piece", try model.piece(Int32(info.vocabSize)) == nil ? "True" : "False")

let chat = try model.chat(contextTokens: 256)
say("no logits", try chat.logits() == nil ? "True" : "False")
try chat.sample(sampling(20))
say("greedy", joined(try tokens(chat.prefill(ids))))
let logits = try chat.logits()!
say("logits", "\(logits.count) \(logits.firstIndex(of: logits.max()!)!)")
let s = try chat.stats()
say("stats", "\(s.tokens) \(s.promptTokens) \(s.cachedTokens) \(s.answerTokens)")
say("truncate", try chat.truncate(3))
refused("nothing") { _ = try chat.next() }
say("again", joined(try tokens(chat.prefill(ids))))
say("cached", try chat.stats().cachedTokens)
try chat.sample(sampling(20) { $0.temperature = 0.8; $0.topK = 40; $0.topP = 0.95; $0.seed = .max })
say("drawn", joined(try tokens(chat.prefill(ids))))
try chat.sample(sampling(40) { $0.stop = ["never", " girl"] })
say("stopped", try text(chat.prefill(ids)))

try chat.sample(sampling(20))
let whole = ids + (try tokens(chat.prefill(ids)))
try chat.save().write(to: URL(fileURLWithPath: out))
say("saved", joined(Array(whole.prefix(try chat.stats().tokens))))
say("tokens", joined(try chat.tokens()))
do {
    let second = try model.chat(contextTokens: 256)
    try second.restore(try Data(contentsOf: URL(fileURLWithPath: state)), ids: ids)
    try second.sample(sampling(20))
    say("restored", joined(try tokens(second.prefill(ids + [5]))))
    say("restored cached", try second.stats().cachedTokens)
    refused("no state") { try second.restore(Data(repeating: 120, count: 100), ids: ids) }
}
do {
    let bounded = try model.chat(contextTokens: 256, policy: "window")
    try bounded.sample(sampling(20))
    let first = try all(bounded.say("Hi! Who are you?", system: "You are a pirate."))
    say("said", first.map { $0.text }.joined())
    say("finish", "\(first.last!.finish)")
    say("then", try text(bounded.say("Tell me a story about a cat.")))
    let later = try model.chat(contextTokens: 256, policy: "window")
    try later.loadSession(bounded.session())
    try later.sample(sampling(20))
    say("session", try text(later.say("Why?")))
    refused("no session") { try later.loadSession(Data(repeating: 120, count: 100)) }
}

// On another thread; its task is cancelled after the third token.
var seen = 0
for try await _ in try chat.prefill(ids) {
    seen += 1
    if seen == 3 { await Task.detached { chat.cancel() }.value }
}
say("cancelled", seen)

refused("policy") { _ = try model.chat(policy: "h2o") }
refused("token") { _ = try chat.prefill([Int32(info.vocabSize)]) }
refused("nul") { _ = try chat.say("a\0b") }
refused("option") { try chat.sample(sampling(1) { $0.topP = 2 }) }

// Close while another thread computes: the other ends, and nothing is freed under it.
let started = DispatchSemaphore(value: 0)
let ended = Task.detached { () -> String in
    do {
        while true { try chat.prefill(ids).forEach { _ in started.signal() } }
    } catch { return "\(error)" }
}
started.wait()
chat.close()
say("closed under", await ended.value)
chat.close()
chat.cancel()
refused("closed chat") { _ = try chat.prefill(ids) }
let left = try model.chat(contextTokens: 64)
model.close()
model.close()
refused("closed by model") { _ = try left.stats() }
refused("closed model") { _ = try model.encode("x") }
