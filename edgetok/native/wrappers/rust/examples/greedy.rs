//! Prints N greedy tokens after a prompt: cargo run --example greedy FOLDER "prompt" N [--ids]
use std::{env, error::Error, io::Write, process::ExitCode};

fn run(told: &[String]) -> Result<(), Box<dyn Error>> {
    let [folder, prompt, count, flags @ ..] = told else {
        return Err("usage: greedy FOLDER PROMPT N [--ids]".into());
    };
    let model = edgetok::Model::open(folder, 0, false)?;
    let mut chat = model.chat(&edgetok::Cache::default())?;
    chat.sample(&edgetok::Sampling { max_tokens: count.parse()?, ..Default::default() })?;
    for piece in chat.prefill(&model.encode(prompt, true)?)? {
        let piece = piece?;
        match flags {
            [] => print!("{}", piece.text),
            _ => print!("{} ", piece.token),
        }
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}

fn main() -> ExitCode {
    let told: Vec<String> = env::args().skip(1).collect();
    let result = run(&told).map_err(|error| eprintln!("{error}"));
    ExitCode::from(u8::from(result.is_err()))
}
