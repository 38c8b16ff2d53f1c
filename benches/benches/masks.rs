//! What it costs to follow a grammar: the masks of sequences that each write a document of one of
//! ten schemas.
//!
//! `cargo bench -p millstream-benches --bench masks [-- --llama-cpp-source DIR]`, where DIR holds
//! llama.cpp's source: its `models/` has the vocabularies of Llama 3 (128k tokens) and Qwen2
//! (152k). Without it, the demo model's 1,780 tokens say little of what real ones cost.
//!
//! The schemas are those of `tests/fixtures/schemas/tools.json`, as the router sends them, and the
//! documents those that stand there as valid, written in three ways. A *first* row is one of the
//! first time that a document is written after its schema was compiled: what the lexer has not seen
//! is worked out then. A step begins all rows' masks at once and waits for the last; beside that
//! wait stand the step's work, all rows' together, and what is left to wait for behind a forward
//! pass of 10 ms, which keeps one thread busy. Prints, and asserts nothing; on a machine that has
//! other work, the waits are those for a processor.

#[path = "../../router/tests/schemas/data.rs"]
#[allow(dead_code, reason = "what the tests read besides")]
mod data;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use millstream_backends::gguf::Gguf;
use millstream_backends::grammar::{Constrained, Grammars};
use millstream_proto::Grammar;
use millstream_router::text::{Constraint, TextModel};
use serde_json::Value;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const SCHEMAS: [&str; 10] = [
    "weather tool",
    "calendar event",
    "query with filters",
    "invoice",
    "strict function arguments",
    "person of Pydantic",
    "call of one of three functions",
    "product",
    "extracted entities",
    "HTTP request",
];
/// Sequences in a step.
const ROWS: [usize; 3] = [1, 32, 256];
/// Steps that are timed, at least, and rows.
const STEPS: usize = 100;
const TIMED_ROWS: usize = 5000;
/// What runs meanwhile.
const FORWARD: Duration = Duration::from_millis(10);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => {
            println!("without --llama-cpp-source DIR: the demo model's vocabulary alone");
            measure("demo", &|name| {
                let path = Path::new(ROOT).join("src/demo/model").join(name);
                Ok(path.exists().then(|| std::fs::read(path)).transpose()?)
            })
        }
        (Some("--llama-cpp-source"), Some(directory)) => {
            for (name, file) in [("Llama 3", "llama-bpe"), ("Qwen2", "qwen2")] {
                let path = PathBuf::from(format!("{directory}/models/ggml-vocab-{file}.gguf"));
                let gguf = Gguf::open(&path)?;
                measure(name, &|file| match file {
                    "tokenizer.json" => Ok(gguf.file(file)?),
                    _ => Ok(None),
                })?;
            }
            Ok(())
        }
        (Some(other), _) => anyhow::bail!("{other}: --llama-cpp-source DIR is what there is"),
    }
}

/// Reads a file of a model.
type Read<'a> = dyn Fn(&str) -> anyhow::Result<Option<Vec<u8>>> + 'a;

fn measure(name: &str, read: &Read<'_>) -> anyhow::Result<()> {
    let tokenizer = read("tokenizer.json")?.context("a tokenizer.json")?;
    let vocab_size = vocab_size(&serde_json::from_slice(&tokenizer)?);
    let text = TextModel::load(&|name| read(name).map_err(std::io::Error::other))?;
    let texts = texts(&text)?;
    let begun = Instant::now();
    let grammars = Grammars::new(tokenizer.into(), vocab_size)?;
    let problem = grammars.problem();
    anyhow::ensure!(problem.is_empty(), problem);
    println!("\n{name}, {vocab_size} tokens, read in {:.0?}", begun.elapsed());

    let mut compiled = Vec::new();
    let mut first = Vec::new();
    for (index, texts) in texts.iter().enumerate() {
        let constrained = grammars.begin(texts[0].grammar.clone(), Vec::new());
        let took = took(&constrained)?;
        println!("  {:32} compiled in {took:9.0?}", SCHEMAS[index]);
        compiled.push(took);
        for text in texts {
            let mut row = Row::begin(&grammars, text);
            while row.advance() {
                first.push(row.wait()?);
            }
        }
    }
    header();
    print("first", first, None);
    for rows in ROWS {
        let mut bench = Bench::new(&grammars, &texts, rows)?;
        let (mut times, mut steps) = (Vec::new(), Steps::default());
        for _ in 0..STEPS.max(TIMED_ROWS / rows) {
            steps.alone += bench.step(&mut times, Duration::ZERO)?;
            steps.behind += bench.step(&mut times, FORWARD)?;
            steps.count += 1;
        }
        print(&format!("{rows} rows"), times, Some(&steps));
    }
    Ok(())
}

/// Ids below which all tokens are.
fn vocab_size(tokenizer: &Value) -> usize {
    let vocab = tokenizer["model"]["vocab"].as_object().into_iter().flatten().map(|(_, id)| id);
    let added =
        tokenizer["added_tokens"].as_array().into_iter().flatten().map(|added| &added["id"]);
    let ids = vocab.chain(added).filter_map(Value::as_u64);
    ids.max().map_or(0, |id| id as usize + 1)
}

/// A document of a schema.
struct Text {
    grammar: Grammar,
    tokens: Vec<u32>,
}

/// The documents of each schema.
fn texts(text: &TextModel) -> anyhow::Result<Vec<Vec<Text>>> {
    let cases = data::cases();
    let texts = |name: &'static str| {
        let case = cases.iter().find(|case| case.name == name).context(name)?;
        let constraint = Constraint::JsonSchema(case.schema.clone());
        let grammar = text.accept(&constraint).map_err(anyhow::Error::msg)?;
        let text = |written: String| {
            let tokens = text.encode(&written, false)?;
            Ok(Text { grammar: grammar.clone(), tokens })
        };
        case.valid.iter().flat_map(data::writings).map(text).collect()
    };
    SCHEMAS.into_iter().map(texts).collect()
}

/// What a thread worked on the mask that is due.
fn took(constrained: &Constrained) -> anyhow::Result<Duration> {
    Ok(constrained.with_mask(|mask| mask.took())?)
}

/// A sequence that writes a text.
struct Row<'a> {
    constrained: Constrained,
    left: std::slice::Iter<'a, u32>,
}

impl<'a> Row<'a> {
    fn begin(grammars: &Grammars, text: &'a Text) -> Self {
        let constrained = grammars.begin(text.grammar.clone(), Vec::new());
        Row { constrained, left: text.tokens.iter() }
    }

    /// Writes the next token, if there is one.
    fn advance(&mut self) -> bool {
        // As the sampler does, which reads the mask before there is a token.
        let is_allowed = self.constrained.with_mask(|_| ()).is_ok();
        let token = self.left.next().filter(|_| is_allowed);
        token.map(|token| self.constrained.advance(*token)).is_some()
    }

    fn wait(&self) -> anyhow::Result<Duration> {
        took(&self.constrained)
    }
}

/// Rows that each write one text after the other.
struct Bench<'a> {
    grammars: &'a Grammars,
    texts: Vec<&'a Text>,
    rows: Vec<Row<'a>>,
    /// The text that is begun next.
    next: usize,
}

impl<'a> Bench<'a> {
    fn new(grammars: &'a Grammars, texts: &'a [Vec<Text>], rows: usize) -> anyhow::Result<Self> {
        // Neighbours have different schemas.
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let texts: Vec<&Text> =
            (0..longest).flat_map(|i| texts.iter().filter_map(move |texts| texts.get(i))).collect();
        let mut bench = Bench { grammars, texts, rows: Vec::new(), next: 0 };
        for index in 0..rows {
            let mut row = bench.begin();
            // So that rows are not all at their beginnings.
            for _ in 0..index % 29 {
                row.advance();
                row.wait()?;
            }
            bench.rows.push(row);
        }
        Ok(bench)
    }

    fn begin(&mut self) -> Row<'a> {
        self.next += 1;
        Row::begin(self.grammars, self.texts[(self.next - 1) % self.texts.len()])
    }

    /// One token in each row; what is left to wait for behind a forward pass.
    fn step(&mut self, times: &mut Vec<Duration>, forward: Duration) -> anyhow::Result<Duration> {
        for index in 0..self.rows.len() {
            if self.rows[index].left.len() == 0 {
                self.rows[index] = self.begin();
                self.rows[index].wait()?;
            }
        }
        let begun = Instant::now();
        for row in &mut self.rows {
            row.advance();
        }
        while begun.elapsed() < forward {
            std::hint::spin_loop();
        }
        let forward_done = begun.elapsed().min(forward);
        for row in &self.rows {
            times.push(row.wait()?);
        }
        Ok(begun.elapsed() - forward_done)
    }
}

/// Steps, half of them behind a forward pass.
#[derive(Default)]
struct Steps {
    /// Of each half.
    count: u32,
    /// Waited for without a forward pass.
    alone: Duration,
    /// What was left to wait for behind one.
    behind: Duration,
}

fn header() {
    println!(
        "\n  {:10} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>10}",
        "us per row", "p50", "p90", "p99", "p99.9", "max", "work, ms", "wait, ms", "behind, ms"
    );
}

fn print(name: &str, mut times: Vec<Duration>, steps: Option<&Steps>) {
    times.sort_unstable();
    let us = |share: f64| {
        let index = ((times.len() - 1) as f64 * share) as usize;
        times[index].as_secs_f64() * 1e6
    };
    print!("  {name:10}");
    for share in [0.5, 0.9, 0.99, 0.999, 1.0] {
        print!(" {:8.1}", us(share));
    }
    if let Some(steps) = steps {
        let ms = |sum: Duration, count: u32| sum.as_secs_f64() * 1e3 / f64::from(count);
        let work = ms(times.iter().sum(), 2 * steps.count);
        let (alone, behind) = (ms(steps.alone, steps.count), ms(steps.behind, steps.count));
        print!(" {work:9.3} {alone:9.3} {behind:10.3}");
    }
    println!();
}
