// Prints N greedy tokens after a prompt: swift run greedy FOLDER "prompt" N [--ids]
import Edgetok
import Foundation

let told = CommandLine.arguments.dropFirst().map { $0 }
do {
    let model = try Model(folder: told[0])
    let chat = try model.chat()
    var sampling = Sampling()
    sampling.maxTokens = Int(told[2])!
    try chat.sample(sampling)
    try chat.prefill(try model.encode(told[1])).forEach {
        print(told.count > 3 ? "\($0.token) " : $0.text, terminator: "")
    }
    print()
} catch let error as EdgetokError {
    FileHandle.standardError.write(Data("\(error)\n".utf8))
    exit(1)
}
