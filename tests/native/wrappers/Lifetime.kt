// Everything that the wrapper has; see README.md.
import edgetok.EdgetokException
import edgetok.Model
import edgetok.Piece
import edgetok.Sampling
import java.io.File
import java.util.concurrent.CountDownLatch
import kotlin.concurrent.thread

fun say(name: String, value: Any?) = println("$name: ${value.toString().replace("\n", "\\n")}")

fun refused(name: String, call: () -> Any?) =
    try { call(); Unit } catch (error: EdgetokException) { say(name, error.message) }

fun Sequence<Piece>.tokens() = map { it.token }.toList()
fun Sequence<Piece>.text() = joinToString("") { it.text }
fun joined(ids: Iterable<Int>) = ids.joinToString(" ")
fun truth(value: Boolean) = if (value) "True" else "False"

fun main(told: Array<String>) {
    val (folder, prompt, state, out) = told
    refused("no folder") { Model("$folder/lib") }
    val model = Model(folder, threads = 1, verify = true)
    val info = model.info
    say("info", "${info.vocabSize} ${info.layers} ${info.kvBits} ${info.threads} ${info.family}")
    say("sha256", info.weightsSha256)
    say("flags", "${if (info.tokenizes) 1 else 0} ${if (info.chats) 1 else 0}")
    val ids = model.encode(prompt)
    say("ids", joined(ids.asIterable()))
    say("pieces", ids.joinToString("") { model.piece(it)!!.decodeToString() })
    say("no piece", truth(model.piece(info.vocabSize) == null))

    val chat = model.chat(256)
    say("no logits", truth(chat.logits() == null))
    chat.sample(Sampling(maxTokens = 20))
    say("greedy", joined(chat.prefill(ids).tokens()))
    val logits = chat.logits()!!
    say("logits", "${logits.size} ${logits.indices.maxBy { logits[it] }}")
    val s = chat.stats
    say("stats", "${s.tokens} ${s.promptTokens} ${s.cachedTokens} ${s.answerTokens}")
    say("truncate", chat.truncate(3))
    refused("nothing") { chat.next() }
    say("again", joined(chat.prefill(ids).tokens()))
    say("cached", chat.stats.cachedTokens)
    chat.sample(Sampling(maxTokens = 20, temperature = 0.8, topK = 40, topP = 0.95, seed = -1))
    say("drawn", joined(chat.prefill(ids).tokens()))
    chat.sample(Sampling(maxTokens = 40, stop = listOf("never", " girl")))
    say("stopped", chat.prefill(ids).text())

    chat.sample(Sampling(maxTokens = 20))
    val whole = ids.toList() + chat.prefill(ids).tokens()
    File(out).writeBytes(chat.save())
    say("saved", joined(whole.take(chat.stats.tokens.toInt())))
    say("tokens", joined(chat.tokens().toList()))
    model.chat(256).use { second ->
        second.restore(File(state).readBytes(), ids)
        second.sample(Sampling(maxTokens = 20))
        say("restored", joined(second.prefill(ids + 5).tokens()))
        say("restored cached", second.stats.cachedTokens)
        refused("no state") { second.restore(ByteArray(100) { 120 }, ids) }
    }
    model.chat(256, policy = "window").use { bounded ->
        bounded.sample(Sampling(maxTokens = 20))
        val first = bounded.say("Hi! Who are you?", "You are a pirate.").toList()
        say("said", first.joinToString("") { it.text })
        say("finish", first.last().finish.name.lowercase())
        say("then", bounded.say("Tell me a story about a cat.").text())
        model.chat(256, policy = "window").use { later ->
            later.loadSession(bounded.session())
            later.sample(Sampling(maxTokens = 20))
            say("session", later.say("Why?").text())
            refused("no session") { later.loadSession(ByteArray(100) { 120 }) }
        }
    }

    var seen = 0
    for (piece in chat.prefill(ids)) if (++seen == 3) thread { chat.cancel() }.join()
    say("cancelled", seen)

    refused("policy") { model.chat(policy = "h2o") }
    refused("token") { chat.prefill(intArrayOf(info.vocabSize)) }
    refused("nul") { chat.say("a\u0000b") }
    refused("option") { chat.sample(Sampling(topP = 2.0)) }

    // Close while another thread computes: the other ends, and nothing is freed under it.
    val started = CountDownLatch(1)
    var ended: String? = null
    val other = thread {
        try {
            while (true) chat.prefill(ids).forEach { _ -> started.countDown() }
        } catch (error: EdgetokException) {
            ended = error.message
        }
    }
    started.await()
    chat.close()
    other.join()
    say("closed under", ended)
    chat.close()
    chat.cancel()
    refused("closed chat") { chat.prefill(ids) }
    val left = model.chat(64)
    model.close()
    model.close()
    refused("closed by model") { left.stats }
    refused("closed model") { model.encode("x") }
}
