//! `millstream bench`: flags in, report out.

use std::path::Path;

use anyhow::{Context, ensure};
use millstream_benches::{Endpoint, Load};

use crate::args::{BenchArgs, EndpointArg};

/// Runs the load and prints what came of it.
pub(crate) fn run(args: BenchArgs) -> anyhow::Result<()> {
    let load = Load {
        url: args.url,
        api_key: args.api_key.map(|key| key.0),
        model: args.model,
        endpoint: match args.endpoint {
            EndpointArg::Chat => Endpoint::Chat,
            EndpointArg::Completions => Endpoint::Completions,
        },
        concurrency: args.concurrency,
        requests: args.requests,
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        vocab_size: args.vocab_size,
        seed: args.seed,
    };
    // One thread: what is left of the machine belongs to the server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(millstream_benches::run(load))?;
    let json = serde_json::to_string_pretty(&report)? + "\n";
    match args.json.as_deref() {
        Some(file) if file == Path::new("-") => print!("{json}"),
        file => {
            print!("{report}");
            if let Some(file) = file {
                std::fs::write(file, json)
                    .with_context(|| format!("cannot write `{}`", file.display()))?;
            }
        }
    }
    ensure!(report.num_answered > 0, "no request was answered");
    Ok(())
}
