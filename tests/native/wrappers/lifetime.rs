//! Everything that the wrapper has; see README.md.
use edgetok::{Answer, Cache, Error, Model, Sampling};
use std::{env, fs, thread};

fn say(name: &str, value: impl ToString) {
    println!("{name}: {}", value.to_string().replace('\n', "\\n"));
}

fn joined(ids: &[i32]) -> String {
    ids.iter().map(i32::to_string).collect::<Vec<_>>().join(" ")
}

fn tokens(answer: Answer) -> Vec<i32> {
    answer.map(|piece| piece.unwrap().token).collect()
}

fn written(answer: Answer) -> String {
    answer.map(|piece| piece.unwrap().text).collect()
}

fn refused<T>(name: &str, result: Result<T, Error>) {
    say(name, result.err().unwrap());
}

fn greedy(max_tokens: i64) -> Sampling {
    Sampling { max_tokens, ..Default::default() }
}

fn cache(context_tokens: i64, policy: Option<&str>) -> Cache {
    Cache { context_tokens, policy: policy.map(String::from), ..Default::default() }
}

fn main() {
    let told: Vec<String> = env::args().skip(1).collect();
    let (folder, prompt, state, out) = (&told[0], &told[1], &told[2], &told[3]);
    refused("no folder", Model::open(format!("{folder}/lib"), 1, false));
    let model = Model::open(folder, 1, true).unwrap();
    let info = model.info();
    let sizes = (info.vocab_size, info.layers, info.kv_bits, info.threads);
    say("info", format!("{} {} {} {} {}", sizes.0, sizes.1, sizes.2, sizes.3, info.family));
    say("sha256", info.weights_sha256);
    say("flags", format!("{} {}", info.tokenizes as i32, info.chats as i32));
    let ids = model.encode(prompt, true).unwrap();
    say("ids", joined(&ids));
    let pieces: Vec<&[u8]> = ids.iter().map(|token| model.piece(*token).unwrap()).collect();
    say("pieces", String::from_utf8(pieces.concat()).unwrap());
    say("no piece", if model.piece(info.vocab_size as i32).is_none() { "True" } else { "False" });

    let mut chat = model.chat(&cache(256, None)).unwrap();
    say("no logits", if chat.logits().is_none() { "True" } else { "False" });
    chat.sample(&greedy(20)).unwrap();
    say("greedy", joined(&tokens(chat.prefill(&ids).unwrap())));
    let logits = chat.logits().unwrap();
    let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    say("logits", format!("{} {best}", logits.len()));
    let s = chat.stats();
    let counts = [s.tokens, s.prompt_tokens, s.cached_tokens, s.answer_tokens];
    say("stats", counts.map(|count| count.to_string()).join(" "));
    say("truncate", chat.truncate(3).unwrap());
    refused("nothing", chat.next());
    say("again", joined(&tokens(chat.prefill(&ids).unwrap())));
    say("cached", chat.stats().cached_tokens);
    let drawn = Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, seed: u64::MAX, ..greedy(20) };
    chat.sample(&drawn).unwrap();
    say("drawn", joined(&tokens(chat.prefill(&ids).unwrap())));
    chat.sample(&Sampling { stop: vec!["never".into(), " girl".into()], ..greedy(40) }).unwrap();
    say("stopped", written(chat.prefill(&ids).unwrap()));

    chat.sample(&greedy(20)).unwrap();
    let mut whole = ids.clone();
    whole.extend(tokens(chat.prefill(&ids).unwrap()));
    fs::write(out, chat.save().unwrap()).unwrap();
    say("saved", joined(&whole[..chat.stats().tokens as usize]));
    say("tokens", joined(&chat.tokens()));
    let mut second = model.chat(&cache(256, None)).unwrap();
    second.restore(&fs::read(state).unwrap(), &ids).unwrap();
    second.sample(&greedy(20)).unwrap();
    let longer = [&ids[..], &[5]].concat();
    say("restored", joined(&tokens(second.prefill(&longer).unwrap())));
    say("restored cached", second.stats().cached_tokens);
    refused("no state", second.restore(&[120; 100], &ids));

    let mut bounded = model.chat(&cache(256, Some("window"))).unwrap();
    bounded.sample(&greedy(20)).unwrap();
    let first: Vec<_> = bounded.say("Hi! Who are you?", Some("You are a pirate.")).unwrap().collect();
    let first: Vec<_> = first.into_iter().map(Result::unwrap).collect();
    say("said", first.iter().map(|piece| piece.text.as_str()).collect::<String>());
    say("finish", format!("{:?}", first.last().unwrap().finish).to_lowercase());
    say("then", written(bounded.say("Tell me a story about a cat.", None).unwrap()));
    let mut later = model.chat(&cache(256, Some("window"))).unwrap();
    later.load_session(&bounded.session().unwrap()).unwrap();
    later.sample(&greedy(20)).unwrap();
    say("session", written(later.say("Why?", None).unwrap()));
    refused("no session", later.load_session(&[120; 100]));

    let canceller = chat.canceller();
    let mut seen = 0;
    for _ in chat.prefill(&ids).unwrap() {
        seen += 1;
        if seen == 3 {
            let other = canceller.clone();
            thread::spawn(move || other.cancel()).join().unwrap();
        }
    }
    say("cancelled", seen);

    refused("policy", model.chat(&cache(0, Some("h2o"))));
    refused("token", chat.prefill(&[info.vocab_size as i32]).map(|_| ()));
    refused("nul", chat.say("a\0b", None).map(|_| ()));
    refused("option", chat.sample(&Sampling { top_p: 2.0, ..greedy(1) }));

    // A chat goes to another thread and keeps its model; a canceller outlives both.
    drop(model);
    let rest = thread::spawn(move || joined(&tokens(chat.prefill(&ids).unwrap())));
    say("elsewhere", rest.join().unwrap());
    canceller.cancel();
}
