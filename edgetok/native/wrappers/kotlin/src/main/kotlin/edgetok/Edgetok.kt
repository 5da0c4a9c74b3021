// libedgetok for Android and the JVM. Close what you open, with `use` or `close()`; closing a model
// closes its chats. Calls of several threads on one chat wait for each other; `cancel` and `close`
// end what another thread computes.
//
//     Model(folder).use { model ->
//         model.chat().use { chat -> chat.say("Hello").forEach { print(it.text) } }
//     }
package edgetok

import java.util.concurrent.ConcurrentHashMap
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock

/** Something failed; says what the library said. */
class EdgetokException(message: String) : Exception(message) {
    @Suppress("unused") // edgetok_jni.c makes them
    internal constructor(utf8: ByteArray) : this(utf8.decodeToString())
}

/** The functions of edgetok_jni.c. */
internal object Native {
    init { System.loadLibrary("edgetok_jni") }

    @JvmStatic external fun open(folder: ByteArray, threads: Int, verify: Boolean): Long
    @JvmStatic external fun close(model: Long)
    @JvmStatic external fun describe(model: Long, numbers: LongArray): ByteArray
    @JvmStatic external fun encode(model: Long, text: ByteArray, special: Boolean): IntArray
    @JvmStatic external fun piece(model: Long, token: Int): ByteArray?
    @JvmStatic external fun chatNew(model: Long, context: Long, budget: Long, policy: ByteArray?): Long
    @JvmStatic external fun chatFree(chat: Long)
    @JvmStatic external fun sample(chat: Long, reals: DoubleArray, whole: LongArray, stop: Array<ByteArray>)
    @JvmStatic external fun prefill(chat: Long, ids: IntArray)
    @JvmStatic external fun say(chat: Long, text: ByteArray, system: ByteArray?)
    @JvmStatic external fun next(chat: Long, numbers: IntArray): ByteArray?
    @JvmStatic external fun cancel(chat: Long)
    @JvmStatic external fun truncate(chat: Long, tokens: Long): Long
    @JvmStatic external fun tokens(chat: Long): IntArray?
    @JvmStatic external fun logits(chat: Long, size: Int): FloatArray?
    @JvmStatic external fun stats(chat: Long): DoubleArray
    @JvmStatic external fun save(chat: Long): ByteArray
    @JvmStatic external fun restore(chat: Long, block: ByteArray, ids: IntArray)
    @JvmStatic external fun session(chat: Long): ByteArray
    @JvmStatic external fun loadSession(chat: Long, file: ByteArray)
}

/** What a model is; see `edgetok_info` of edgetok.h. */
data class Info(
    val vocabSize: Int, val contextTokens: Long, val layers: Int, val kvBits: Int, val blockTokens: Long,
    val weightBytes: Long, val bufferBytes: Long, val threads: Int, val tokenizes: Boolean,
    val chats: Boolean, val isa: String, val family: String, val weightsSha256: String,
)

/** What a chat holds and took; see `edgetok_stats_t` of edgetok.h. */
data class Stats(
    val tokens: Long, val position: Long, val slots: Long, val cacheBytes: Long, val promptTokens: Long,
    val cachedTokens: Long, val answerTokens: Long, val prefillS: Double, val decodeS: Double,
)

/** How answers are sampled. By default the most likely token is taken; 0 switches an option off. */
data class Sampling(
    val temperature: Double = 0.0, val topP: Double = 0.0, val minP: Double = 0.0,
    val repetitionPenalty: Double = 0.0, val presencePenalty: Double = 0.0,
    val frequencyPenalty: Double = 0.0, val topK: Long = 0, val seed: Long = 0, val maxTokens: Long = 0,
    val stop: List<String> = emptyList(),
)

enum class Finish { GOING, STOP, LENGTH, CONTEXT, CANCELLED }

/** A token of an answer, the text that it completes, and why it is the last. */
data class Piece(val token: Int, val text: String, val finish: Finish)

/** A handle of the library, freed by [close]. */
sealed class Owned(private val what: String, private var handle: Long) : AutoCloseable {
    private val use = ReentrantLock() // one call at a time
    private val life = ReentrantLock() // what `cancel` and freeing take

    internal fun <T> call(function: (Long) -> T): T = use.withLock {
        if (handle == 0L) throw EdgetokException("the $what is closed")
        function(handle)
    }

    internal fun beside(function: (Long) -> Unit) = life.withLock { if (handle != 0L) function(handle) }

    internal fun end(before: () -> Unit, free: (Long) -> Unit) = use.withLock {
        before()
        life.withLock {
            if (handle != 0L) free(handle)
            handle = 0L
        }
    }
}

/**
 * A folder that `edgetok export --format native` wrote, opened.
 *
 * [threads]: 0 for one a performance core; [verify] compares the weights with their sha256, which reads all of them.
 */
class Model(folder: String, threads: Int = 0, verify: Boolean = false) :
    Owned("model", Native.open(plain(folder), threads, verify)) {
    internal val chats: MutableSet<Chat> = ConcurrentHashMap.newKeySet()

    val info: Info get() = call { model ->
        val n = LongArray(10)
        val (isa, family, sha256) = Native.describe(model, n).decodeToString().split("\n")
        Info(
            n[0].toInt(), n[1], n[2].toInt(), n[3].toInt(), n[4], n[5], n[6], n[7].toInt(), n[8] != 0L,
            n[9] != 0L, isa, family, sha256,
        )
    }

    /** A text's tokens; [special] adds what belongs around one, such as `<s>`. */
    fun encode(text: String, special: Boolean = true): IntArray =
        call { Native.encode(it, text.encodeToByteArray(), special) }

    /** The bytes that a token stands for; null for no such token. */
    fun piece(token: Int): ByteArray? = call { Native.piece(it, token) }

    /** A conversation: with a context, or with what its cache may take; [policy] null is recall. */
    fun chat(contextTokens: Long = 0, budgetBytes: Long = 0, policy: String? = null): Chat = call {
        val handle = Native.chatNew(it, contextTokens, budgetBytes, policy?.let(::plain))
        Chat(this, handle).also(chats::add)
    }

    override fun close() = end({ chats.forEach(Chat::close) }, Native::close)
}

/** A conversation with a cache of its own; [Model.chat] makes one. */
class Chat internal constructor(private val model: Model, handle: Long) : Owned("chat", handle) {
    private val vocabSize by lazy { model.info.vocabSize }

    /** Ends a prefill or an answer that another thread computes. */
    fun cancel() = beside(Native::cancel)

    /** Sets how the answers after the next [say] or [prefill] are sampled. */
    fun sample(s: Sampling) = call {
        val reals = doubleArrayOf(
            s.temperature, s.topP, s.minP, s.repetitionPenalty, s.presencePenalty, s.frequencyPenalty,
        )
        val stop = s.stop.map(::plain).toTypedArray()
        Native.sample(it, reals, longArrayOf(s.topK, s.seed, s.maxTokens), stop)
    }

    /** Says something by the chat template; returns the answer. [system] belongs to the first turn. */
    fun say(text: String, system: String? = null): Sequence<Piece> {
        call { Native.say(it, plain(text), system?.let(::plain)) }
        return generateSequence(::next)
    }

    /** Makes [ids] the chat's tokens, keeping what the cache holds; returns the answer. */
    fun prefill(ids: IntArray): Sequence<Piece> {
        call { Native.prefill(it, ids) }
        return generateSequence(::next)
    }

    /** The next token of the answer; null when it is over. */
    fun next(): Piece? = call {
        val n = IntArray(2)
        Native.next(it, n)?.let { text -> Piece(n[0], text.decodeToString(), Finish.entries[n[1]]) }
    }

    /** Goes back to the first tokens, or fewer if some were evicted; returns how many. */
    fun truncate(tokens: Long): Long = call { Native.truncate(it, tokens) }

    /** Ids of the chat's tokens, evicted ones included. */
    fun tokens(): IntArray = call { Native.tokens(it) ?: throw EdgetokException("no memory for the tokens") }

    /** Of the last token computed; null before the first. */
    fun logits(): FloatArray? = vocabSize.let { size -> call { Native.logits(it, size) } }

    val stats: Stats get() = call {
        val s = Native.stats(it)
        val n = s.map(Double::toLong)
        Stats(n[0], n[1], n[2], n[3], n[4], n[5], n[6], s[7], s[8])
    }

    /** The cache, for [restore] or for edgetok in Python; keep [tokens] with it. */
    fun save(): ByteArray = call(Native::save)

    /** Takes over a cache that was computed from [ids]. */
    fun restore(block: ByteArray, ids: IntArray) = call { Native.restore(it, block, ids) }

    /** The content of a session file, which `edgetok chat --session` opens. */
    fun session(): ByteArray = call(Native::session)

    /** Goes on with the conversation of a session file, which Python may have written. */
    fun loadSession(file: ByteArray) = call { Native.loadSession(it, file) }

    override fun close() {
        cancel() // what another thread computes, so that the lock is free soon
        end({}, Native::chatFree)
        model.chats -= this
    }
}

private fun plain(text: String): ByteArray {
    if ('\u0000' in text) throw EdgetokException("a text holds a NUL character; remove it")
    return text.encodeToByteArray()
}
