// Prints N greedy tokens after a prompt: java ... ExampleKt FOLDER "prompt" N [--ids]
import edgetok.EdgetokException
import edgetok.Model
import edgetok.Sampling
import kotlin.system.exitProcess

fun main(told: Array<String>) {
    val (folder, prompt, count) = told
    try {
        Model(folder).use { model ->
            val chat = model.chat()
            chat.sample(Sampling(maxTokens = count.toLong()))
            chat.prefill(model.encode(prompt)).forEach {
                print(if (told.size > 3) "${it.token} " else it.text)
                System.out.flush()
            }
            println()
        }
    } catch (error: EdgetokException) {
        System.err.println(error.message)
        exitProcess(1)
    }
}
