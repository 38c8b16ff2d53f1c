//! What a GPU reaches: its memory and its products, each kernel beside them, and whole models.
//!
//! `cargo bench -p millstream-benches --features cuda --bench gpu [-- PART.. --small]`
//!
//! A PART is `peaks`, `kernels` or `model`; without one, all. Standard output is JSON, one object a
//! line: first the machine, then a row for everything that was measured. `us` is the median of
//! several runs on the device, recorded and replayed as the worker does it, so that the host's part
//! is not in it. `fraction` is the share of the time that the roofline allows: what must be moved
//! at the speed of a copy, or what must be multiplied at that of a large product, whichever takes
//! longer; `of` says which.
//! A model's tokens per second are one over the wall time of a token.
//!
//! `--commit HASH` is stated with the machine.
//! `--small` divides all sizes, so that everything runs on the emulator: its numbers mean nothing.
//! Where there is no GPU, one line says so.

mod attention;
mod kernels;
mod measure;
mod mixture;
mod model;
mod sampling;

use std::process::ExitCode;

use anyhow::bail;
use measure::Bench;
use millstream_kernels::cuda::Gpu;
use serde_json::json;

const PARTS: [&str; 3] = ["peaks", "kernels", "model"];

/// What is asked for.
struct Arguments {
    parts: Vec<String>,
    small: bool,
    commit: Option<String>,
}

impl Arguments {
    fn read() -> anyhow::Result<Self> {
        let mut arguments = Arguments { parts: Vec::new(), small: false, commit: None };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match &*word {
                // What cargo adds.
                "--bench" => {}
                "--small" => arguments.small = true,
                "--commit" => arguments.commit = words.next(),
                part if PARTS.contains(&part) => arguments.parts.push(word),
                _ => bail!("{word} is none of {PARTS:?}, --small and --commit HASH"),
            }
        }
        Ok(arguments)
    }

    fn has(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|asked| asked == part)
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::read()?;
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("nothing was measured: {error}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let properties = gpu.properties();
    let (major, minor) = properties.compute_capability;
    let machine = json!({
        "gpu": properties.name,
        "compute_capability": format!("{major}.{minor}"),
        "multiprocessors": properties.multiprocessors,
        "memory_bytes": properties.memory,
        "driver": properties.driver_version,
        "version": env!("CARGO_PKG_VERSION"),
        "commit": arguments.commit,
        "small": arguments.small,
    });
    println!("{machine}");
    // Everything else is measured by these.
    let bench = Bench::new(gpu, arguments.small)?;
    if arguments.has("kernels") {
        kernels::run(&bench)?;
        attention::run(&bench)?;
        mixture::run(&bench)?;
        sampling::run(&bench)?;
    }
    if arguments.has("model") {
        // The models take all memory that is free.
        let peaks = bench.finish();
        model::run(&peaks, arguments.small)?;
    }
    Ok(ExitCode::SUCCESS)
}
