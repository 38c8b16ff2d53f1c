//! Millstream beside llama.cpp: the same shape, the same random weights, the same machine, one
//! after the other in one run.
//!
//! `cargo build --release && cargo bench -p millstream-benches --bench peer -- --llama-cpp DIR`,
//! where DIR is a build of llama.cpp. Further flags, each with a value:
//!
//! - `--config FILE`: a config.json of the Qwen3 family; without it, that of Qwen3-0.6B;
//! - `--rounds N`: how often everything is measured (3);
//! - `--formats LIST`: the peer's, of bf16, q8_0, q4_0 and q4_k_m (all), each beside the nearest of
//!   ours;
//! - `--parts LIST`: of engine, server and long (engine,server); long decodes 8 contexts of 8,000
//!   tokens, which takes minutes and 8 GB;
//! - `--out FILE`: where the table goes as well, in Markdown.
//!
//! The engines alone: ours in this process, the peer's by llama-batched-bench and llama-bench. The
//! servers: `millstream serve` and llama-server, asked by the same client for the same prompts.
//! Neighbours on a machine move its memory by a third within minutes, so the sides take turns
//! within each round, and what the machine can do at most is measured in the same rounds.

#[path = "../common/engine.rs"]
mod engine;
mod gguf;
mod llama_cpp;
mod machine;
mod ours;
#[path = "../common/roofline.rs"]
mod roofline;
#[path = "../common/server.rs"]
mod server;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use millstream_benches::{Endpoint, Load};

use gguf::Shape;
use llama_cpp::LlamaCpp;
use machine::Peaks;
use ours::Format;
use server::Server;
use table::{Sample, Side, Table, What};

const CONFIG: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/configs/qwen3-0.6b.json");
/// The peer's formats, with ours that compare.
const FORMATS: [(&str, Format); 4] = [
    ("bf16", Format::Bf16),
    ("q8_0", Format::Int8),
    ("q4_0", Format::Int4),
    ("q4_k_m", Format::Int4),
];
/// Tokens of a prompt before its decoding is timed, and tokens of an answer.
const PROMPT: usize = 128;
const ANSWER: usize = 64;
/// Sequences that the engines decode at once.
const BATCHES: [usize; 3] = [1, 8, 32];
/// Tokens of a prefill.
const PREFILL: usize = 512;
/// Long contexts: sequences, tokens of each, steps.
const LONG: (usize, usize, usize) = (8, 8000, 16);
/// Streams of a load on a server, and its requests.
const LOADS: [(u32, u32); 3] = [(1, 4), (8, 16), (32, 64)];
/// Before each load, either server is left alone for so long: what the peer does before it says that
/// it is ready, such as writing to all of its cache, ours does while it has no work.
const SETTLING: Duration = Duration::from_secs(3);

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let shape = Shape::read(&arguments.config)?;
    let llama_cpp = LlamaCpp::new(&arguments.llama_cpp, &arguments.config, roofline::threads())?;
    let comparison = Comparison { arguments, shape, llama_cpp };
    for (format, _) in &comparison.arguments.formats {
        comparison.llama_cpp.model(&comparison.shape, format)?;
    }
    let (load_before, mut peaks) = (machine::load(), Peaks::default());
    let title = |(peer, ours): &(&str, Format)| Table::new(format!("{ours:?} beside {peer}"));
    let mut tables: Vec<_> = comparison.arguments.formats.iter().map(title).collect();
    for round in 0..comparison.arguments.rounds {
        for (format, table) in comparison.arguments.formats.iter().zip(&mut tables) {
            peaks.measure();
            comparison.round(round, *format, table)?;
        }
        eprintln!("round {} of {} is done", round + 1, comparison.arguments.rounds);
    }
    let mut text = comparison.preface(&peaks, &load_before)?;
    for ((format, _), table) in comparison.arguments.formats.iter().zip(&tables) {
        let bytes = comparison.weight_bytes(format)?;
        text += "\n";
        text += &table.markdown(|what| comparison.shape.limit(what, bytes, format, &peaks));
    }
    print!("{text}");
    if let Some(out) = &comparison.arguments.out {
        std::fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
    }
    Ok(())
}

struct Comparison {
    arguments: Arguments,
    shape: Shape,
    llama_cpp: LlamaCpp,
}

impl Comparison {
    /// Measures both sides once.
    fn round(&self, round: u32, format: (&str, Format), table: &mut Table) -> anyhow::Result<()> {
        let sides = match round % 2 {
            0 => [Side::Ours, Side::Peer],
            _ => [Side::Peer, Side::Ours],
        };
        for part in &self.arguments.parts {
            for side in sides {
                let samples = match (part, side) {
                    (Part::Server, _) => self.served(round, side, format)?,
                    (_, Side::Ours) => self.engine(*part, format.1)?,
                    (_, Side::Peer) => {
                        let model = self.llama_cpp.model(&self.shape, format.0)?;
                        match part {
                            Part::Long => self.llama_cpp.long(&model)?,
                            _ => self.llama_cpp.engine(&model)?,
                        }
                    }
                };
                table.add(side, samples);
            }
        }
        Ok(())
    }

    fn engine(&self, part: Part, format: Format) -> anyhow::Result<Vec<Sample>> {
        match part {
            Part::Long => ours::long(&self.arguments.config, &self.shape, format),
            _ => ours::engine(&self.arguments.config, &self.shape, format),
        }
    }

    /// Every load on one side's server. The peer gets one with as many slots as there are streams.
    fn served(
        &self,
        round: u32,
        side: Side,
        (peer, ours): (&str, Format),
    ) -> anyhow::Result<Vec<Sample>> {
        let mut samples = Vec::new();
        match side {
            Side::Ours => {
                let server = Server::millstream(&self.arguments.config, ours.flags())?;
                for load in LOADS {
                    samples.extend(self.load(&server.url, round, load)?);
                }
            }
            Side::Peer => {
                let model = self.llama_cpp.model(&self.shape, peer)?;
                for load in LOADS {
                    let server = self.llama_cpp.serve(&model, load.0)?;
                    samples.extend(self.load(&server.url, round, load)?);
                }
            }
        }
        Ok(samples)
    }

    fn load(
        &self,
        url: &str,
        round: u32,
        (streams, requests): (u32, u32),
    ) -> anyhow::Result<Vec<Sample>> {
        let load = Load {
            url: url.to_owned(),
            endpoint: Endpoint::Completions,
            concurrency: streams,
            requests,
            prompt_tokens: PROMPT as u32,
            output_tokens: ANSWER as u32,
            vocab_size: self.shape.vocab as u32,
            // No prompt comes twice, so no cache of prefixes helps.
            seed: u64::from(round) << 32 | u64::from(streams),
            ..Load::default()
        };
        std::thread::sleep(SETTLING);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let report = runtime.block_on(millstream_benches::run(load))?;
        let failure = report.first_error.as_deref().unwrap_or("an answer of another length");
        ensure!(report.num_errors == 0 && report.num_other_length == 0, "{url}: {failure}");
        let gap = |percentile| What::BetweenTokens { streams, percentile };
        Ok(vec![
            (What::Served { streams }, report.output_tokens_per_s),
            (What::FirstToken { streams }, report.ttft_ms.p50),
            (gap(50), report.inter_token_ms.p50),
            (gap(99), report.inter_token_ms.p99),
        ])
    }

    /// Bytes of the weights in a format of the peer's.
    fn weight_bytes(&self, format: &str) -> anyhow::Result<f64> {
        if format == "bf16" {
            let weights = self.shape.layer_weights() + self.shape.head_weights();
            return Ok(2.0 * weights as f64);
        }
        Ok(std::fs::metadata(self.llama_cpp.model(&self.shape, format)?)?.len() as f64)
    }

    /// What was measured, on what, and with what.
    fn preface(&self, peaks: &Peaks, load_before: &str) -> anyhow::Result<String> {
        let Arguments { config, rounds, .. } = &self.arguments;
        let name = config.file_name().unwrap_or_default().to_string_lossy();
        let version = env!("CARGO_PKG_VERSION");
        let loads = LOADS.map(|(streams, requests)| format!("{requests} on {streams} streams"));
        Ok(format!(
            "# Millstream beside llama.cpp\n\n\
             Machine: {}.\n\
             Load average before: {load_before}.\n\
             Read from memory: {:.1} GB/s; bf16 products: {:.0} GFLOP/s; int8 products: {:.0} \
             GOP/s; each the best of this run.\n\
             Millstream {version} ({}); llama.cpp: {}.\n\
             Shape: {name}, random weights, the same on both sides; {rounds} rounds, the sides in \
             turn.\n\
             Prompts of {PROMPT} tokens, answers of {ANSWER}; requests over HTTP: {}, each load \
             {} s after the one before.\n\
             A ratio is that of the medians, above 1 where Millstream is faster.\n",
            machine::describe(),
            peaks.read / 1e9,
            peaks.bf16 / 1e9,
            peaks.int8 / 1e9,
            millstream_backends::instruction_set(),
            self.llama_cpp.version()?,
            loads.join(", "),
            SETTLING.as_secs(),
        ))
    }
}

impl Shape {
    /// Bytes of a token's keys and values, in 16 bits.
    fn kv_bytes(&self) -> usize {
        self.layers * 2 * self.kv_heads * self.head_dim * 2
    }

    /// The rate that the machine's memory and multipliers allow: a decode step reads the weights
    /// and every cached token once, and products are in bf16 or, for weights of fewer bits, in
    /// bytes.
    fn limit(&self, what: What, weight_bytes: f64, format: &str, peaks: &Peaks) -> Option<f64> {
        let (layers, head) = (self.layer_weights() as f64, self.head_weights() as f64);
        let products = if format == "bf16" { peaks.bf16 } else { peaks.int8 };
        // Of a token that attends to `context` others, in bf16 at best.
        let attention = |context: f64| {
            4.0 * (self.layers * self.heads * self.head_dim) as f64 * context / peaks.bf16
        };
        match what {
            What::Decode { batch, context } => {
                let steps = if context == LONG.1 { LONG.2 } else { ANSWER };
                let (batch, context) = (batch as f64, (context + steps / 2) as f64);
                let bytes = weight_bytes + batch * context * self.kv_bytes() as f64;
                let compute = batch * (2.0 * (layers + head) / products + attention(context));
                Some(batch / (bytes / peaks.read).max(compute))
            }
            What::Prefill { tokens } => {
                let tokens = tokens as f64;
                let token = 2.0 * layers / products + attention(tokens / 2.0);
                Some(tokens / (tokens * token + 2.0 * head / products))
            }
            _ => None,
        }
    }
}

/// What is measured together.
#[derive(Clone, Copy, Debug)]
enum Part {
    Engine,
    Server,
    Long,
}

struct Arguments {
    llama_cpp: PathBuf,
    config: PathBuf,
    rounds: u32,
    formats: Vec<(&'static str, Format)>,
    parts: Vec<Part>,
    out: Option<PathBuf>,
}

impl Arguments {
    fn parse(words: impl Iterator<Item = String>) -> anyhow::Result<Arguments> {
        let mut llama_cpp = None;
        let mut arguments = Arguments {
            llama_cpp: PathBuf::new(),
            config: CONFIG.into(),
            rounds: 3,
            formats: FORMATS.to_vec(),
            parts: vec![Part::Engine, Part::Server],
            out: None,
        };
        // Cargo adds a flag of its own.
        let mut words = words.filter(|word| word != "--bench");
        while let Some(flag) = words.next() {
            let value = words.next().with_context(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--llama-cpp" => llama_cpp = Some(value.into()),
                "--config" => arguments.config = value.into(),
                "--rounds" => arguments.rounds = value.parse().context("--rounds")?,
                "--formats" => arguments.formats = list(&value, format)?,
                "--parts" => arguments.parts = list(&value, part)?,
                "--out" => arguments.out = Some(value.into()),
                _ => bail!("unknown flag {flag}"),
            }
        }
        arguments.llama_cpp = llama_cpp.context("--llama-cpp DIR is needed")?;
        Ok(arguments)
    }
}

fn list<T>(value: &str, parse: impl Fn(&str) -> Option<T>) -> anyhow::Result<Vec<T>> {
    let one = |word| parse(word).with_context(|| format!("`{word}` is not known"));
    value.split(',').map(one).collect()
}

fn format(name: &str) -> Option<(&'static str, Format)> {
    FORMATS.into_iter().find(|(format, _)| *format == name)
}

fn part(name: &str) -> Option<Part> {
    match name {
        "engine" => Some(Part::Engine),
        "server" => Some(Part::Server),
        "long" => Some(Part::Long),
        _ => None,
    }
}
