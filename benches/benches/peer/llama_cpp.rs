//! The peer: llama.cpp's own tools, run as its users run them.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::gguf::{self, Shape};
use crate::server::Server;
use crate::table::{Sample, What};
use crate::{ANSWER, BATCHES, LONG, PREFILL, PROMPT};

/// Where llama.cpp is, and what it is given.
pub(crate) struct LlamaCpp {
    /// Of its executables.
    directory: PathBuf,
    /// Where GGUF files are made, and kept for the next run.
    models: PathBuf,
    /// What names the files of this configuration.
    digest: u64,
    threads: String,
}

impl LlamaCpp {
    /// Finds the tools in `directory`, or in its `bin`.
    pub(crate) fn new(directory: &Path, config: &Path, threads: usize) -> anyhow::Result<Self> {
        let inner = directory.join("bin");
        let directory = if inner.is_dir() { inner } else { directory.to_owned() };
        let tools = ["llama-quantize", "llama-bench", "llama-batched-bench", "llama-server"];
        for tool in tools {
            let path = directory.join(tool);
            ensure!(path.is_file(), "{} is missing; build llama.cpp's tools", path.display());
        }
        let models = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peer");
        std::fs::create_dir_all(&models)?;
        let mut digest = DefaultHasher::new();
        std::fs::read(config)?.hash(&mut digest);
        let (digest, threads) = (digest.finish(), threads.to_string());
        Ok(Self { directory, models, digest, threads })
    }

    /// What it calls its version.
    pub(crate) fn version(&self) -> anyhow::Result<String> {
        let output = self.run("llama-server", &["--version"])?;
        let line = output.lines().find(|line| line.starts_with("version:"));
        Ok(line.unwrap_or("version unknown").to_owned())
    }

    /// The model in one of its formats; made where it is not there yet.
    pub(crate) fn model(&self, shape: &Shape, format: &str) -> anyhow::Result<PathBuf> {
        let file = |format: &str| self.models.join(format!("{:016x}-{format}.gguf", self.digest));
        let (path, bf16) = (file(format), file("bf16"));
        if path.is_file() {
            return Ok(path);
        }
        // Under its name stands only what is complete.
        let partial = path.with_extension("partial");
        if format == "bf16" {
            gguf::write(shape, &partial)?;
        } else {
            self.model(shape, "bf16")?;
            let kind = format.to_uppercase();
            self.run("llama-quantize", &[text(&bf16)?, text(&partial)?, &kind, &self.threads])?;
        }
        std::fs::rename(&partial, &path)?;
        Ok(path)
    }

    /// Decoding in batches, and a prefill, without a server.
    pub(crate) fn engine(&self, model: &Path) -> anyhow::Result<Vec<Sample>> {
        let mut samples = self.batched(model, &BATCHES, (PROMPT, ANSWER))?;
        let prompt = PREFILL.to_string();
        let flags = ["-m", text(model)?, "-t", &self.threads, "-p", &prompt, "-n", "0", "-r", "3"];
        let output = self.run("llama-bench", &[&flags[..], &["-o", "jsonl"]].concat())?;
        for line in json_lines(&output) {
            let rates = line["samples_ts"].as_array().context("llama-bench has no samples")?;
            let what = What::Prefill { tokens: PREFILL };
            samples.extend(rates.iter().filter_map(Value::as_f64).map(|rate| (what, rate)));
        }
        Ok(samples)
    }

    /// Decoding of long contexts.
    pub(crate) fn long(&self, model: &Path) -> anyhow::Result<Vec<Sample>> {
        let (streams, prompt, steps) = LONG;
        self.batched(model, &[streams], (prompt, steps))
    }

    fn batched(
        &self,
        model: &Path,
        batches: &[usize],
        (prompt, steps): (usize, usize),
    ) -> anyhow::Result<Vec<Sample>> {
        let largest = batches.iter().max().copied().unwrap_or(1);
        // Each sequence has an equal share, which is rounded to 256 cells.
        let context = (largest * (prompt + steps).next_multiple_of(256)).to_string();
        let list = batches.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let (prompt_flag, steps_flag) = (prompt.to_string(), steps.to_string());
        let flags = [
            ["-m", text(model)?],
            ["-c", &context],
            ["-b", "2048"],
            ["-ub", "512"],
            ["-t", &self.threads],
            ["-tb", &self.threads],
            ["-npp", &prompt_flag],
            ["-ntg", &steps_flag],
            ["-npl", &list],
            ["--output-format", "jsonl"],
        ];
        let output = self.run("llama-batched-bench", &flags.concat())?;
        let mut samples = Vec::new();
        for line in json_lines(&output) {
            let batch = line["pl"].as_u64().context("llama-batched-bench has no `pl`")? as usize;
            let rate = line["speed_tg"].as_f64().context("llama-batched-bench has no speed")?;
            samples.push((What::Decode { batch, context: prompt }, rate));
        }
        ensure!(samples.len() == batches.len(), "llama-batched-bench ran {samples:?} only");
        Ok(samples)
    }

    /// A server with a slot of 256 tokens for each stream.
    pub(crate) fn serve(&self, model: &Path, streams: u32) -> anyhow::Result<Server> {
        let (slots, context) = (streams.to_string(), (streams * 256).to_string());
        let flags = [
            ["-m", text(model)?],
            ["--host", "127.0.0.1"],
            ["-np", &slots],
            ["-c", &context],
            ["-t", &self.threads],
            ["-tb", &self.threads],
        ];
        let flags = flags.concat().into_iter().chain(["--offline"]).map(OsString::from);
        let flags: Vec<_> = flags.collect();
        Server::start(&self.directory.join("llama-server"), &flags)
    }

    /// Runs a tool to its end; all that it says.
    fn run(&self, tool: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(self.directory.join(tool)).args(arguments).output()?;
        let [out, error] =
            [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
        ensure!(output.status.success(), "{tool} {}: {error}", output.status);
        Ok(format!("{out}\n{error}"))
    }
}

fn json_lines(output: &str) -> impl Iterator<Item = Value> + '_ {
    let objects = output.lines().filter(|line| line.starts_with('{'));
    objects.filter_map(|line| serde_json::from_str(line).ok())
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))
}
