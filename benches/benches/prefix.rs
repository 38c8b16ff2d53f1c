//! What prefix reuse is worth: how soon the second turn over a history of 2,000 tokens begins, with
//! the history in the cache and without.
//!
//! `cargo build --release && cargo bench -p millstream-benches --bench prefix [-- CONFIG]`, where
//! CONFIG is a config.json; without it, that of Qwen3-0.6B. Starts `millstream serve` with random
//! weights of this shape, and asks over HTTP: the same prompt with the `cache_salt` of the first
//! turn, and with another. Prints both times and their ratio; nothing is asserted.

#[path = "common/server.rs"]
mod server;

use std::path::Path;

use millstream_benches::Turns;
use server::Server;

const CONFIG: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/configs/qwen3-0.6b.json");

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let config = arguments.next().unwrap_or_else(|| CONFIG.to_owned());
    let server = Server::millstream(Path::new(&config), &[])?;
    let turns = Turns {
        url: server.url.clone(),
        history_tokens: 2000,
        turn_tokens: 32,
        rounds: 5,
        vocab_size: 1000,
        seed: 0,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    print!("{}", runtime.block_on(turns.run())?);
    Ok(())
}
