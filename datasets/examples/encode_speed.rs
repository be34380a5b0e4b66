//! How long `rwkv-world` takes to be ready and how fast it encodes a file, on one thread:
//!
//! ```text
//! cargo run --release -p rwkvx-datasets --example encode_speed -- FILE
//! ```

use std::time::{Duration, Instant};

use rwkvx_datasets::Tokenizer;

/// The fastest of so many runs is told; the others are disturbed by something.
const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: encode_speed FILE")?;
    let text = std::fs::read_to_string(path)?;
    let start = Instant::now();
    let tokenizer = Tokenizer::open("rwkv-world")?;
    tokenizer.encode("a")?;
    println!("ready after {:.1?}", start.elapsed());

    let mut best = Duration::MAX;
    let mut tokens = 0;
    for _ in 0..RUNS {
        let start = Instant::now();
        tokens = tokenizer.encode(&text)?.len();
        best = best.min(start.elapsed());
    }
    let megabytes = text.len() as f64 / 1e6;
    let speed = megabytes / best.as_secs_f64();
    println!("{megabytes:.1} MB, {tokens} tokens: {speed:.1} MB/s");
    Ok(())
}
