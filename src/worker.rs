//! The worker's process: loads a model and serves steps on a Unix socket.
//!
//! Started by `serve`, it says when it is ready on standard output, and lives no longer than its
//! standard input is open.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use millstream_backends::candle::{self, LoadOptions};
use millstream_backends::mock::{MockConfig, MockGroup, MockModel};
use millstream_backends::{Immediate, LoadError, Pipeline, Progress, threads};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::args::{Device, Dtype, LoadFormat, ModelArgs, Quantize, WorkerArgs};
use crate::launcher::READY_LINE;
use crate::{logging, model};

/// Tokens per KV block.
const BLOCK_SIZE: u32 = 16;
/// Tokens of a step that the worker makes room for, unless told otherwise.
const MAX_BATCH_TOKENS: u32 = 8192;

/// Where an executable's worker computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// That of `millstream`.
    Processor,
    /// That of `millstream-cuda`.
    #[cfg(feature = "cuda")]
    Gpu,
}

/// Runs until the process is ended, or the model cannot be served.
pub(crate) fn run(args: WorkerArgs, place: Place) -> anyhow::Result<()> {
    if place == Place::Processor && args.model.device == Device::Cuda {
        bail!("--device cuda: the worker on a GPU is the executable millstream-cuda");
    }
    logging::init(&args.log)?;
    if args.follow_stdin {
        follow_stdin(args.listen.clone())?;
    }
    start_compute_threads(&args.model)?;
    let options = args.model;
    // Runs on the thread that will run the steps.
    let load = move |progress: &Progress| {
        if options.pin_cpu_threads {
            threads::pin_caller().map_err(|error| LoadError::Device(error.to_string()))?;
        }
        let model = load(&options, place, progress)?;
        if args.follow_stdin {
            // Nobody reads it only if the parent is gone, and then this process ends anyway.
            let _ = writeln!(io::stdout(), "{READY_LINE}");
        }
        Ok(model)
    };
    // The sockets need little; the cores belong to the model.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        // Taken over before the model loads, so that it ends a worker at any time in order.
        let mut terminate = signal(SignalKind::terminate())?;
        let shutdown = async {
            terminate.recv().await;
            info!("SIGTERM, leaving");
        };
        Ok(millstream_backends::serve(args.listen, load, shutdown).await?)
    })
}

/// Ends this process as soon as standard input does, and removes the socket and its directory.
///
/// The other end of the pipe is held by the parent alone, so the system closes it whichever way
/// the parent ends. Nothing is finished first: there is nobody left to finish it for.
fn follow_stdin(socket: PathBuf) -> io::Result<()> {
    let follow = move || {
        let mut nothing = [0; 64];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut nothing) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // The parent may have removed them already. A directory that holds anything else stays.
        let _ = std::fs::remove_file(&socket);
        let _ = socket.parent().map(std::fs::remove_dir);
        std::process::exit(0);
    };
    std::thread::Builder::new().name("follow-stdin".into()).spawn(follow).map(drop)
}

/// Starts the threads that compute.
fn start_compute_threads(args: &ModelArgs) -> anyhow::Result<()> {
    // The second number knows what a container may use.
    let cores = || num_cpus::get_physical().min(num_cpus::get());
    let count = args.cpu_threads.map_or_else(cores, usize::from);
    threads::start(count, args.pin_cpu_threads).context("--cpu-threads")
}

fn load(
    args: &ModelArgs,
    place: Place,
    progress: &Progress,
) -> Result<Box<dyn Pipeline>, LoadError> {
    if let Some(settings) = &args.mock {
        let mock = MockModel::new(mock_config(settings, args)?);
        return Ok(Box::new(Immediate::new(mock)));
    }
    let source = model::source(args).map_err(|error| LoadError::Device(error.to_string()))?;
    let options = LoadOptions {
        load_format: match args.load_format {
            LoadFormat::Auto => candle::LoadFormat::Auto,
            LoadFormat::Dummy => candle::LoadFormat::Dummy,
        },
        dtype: args.dtype.map(|dtype| match dtype {
            Dtype::F32 => candle::WeightDtype::F32,
            Dtype::F16 => candle::WeightDtype::F16,
            Dtype::Bf16 => candle::WeightDtype::Bf16,
        }),
        quantize: args.quantize.map(|method| match method {
            Quantize::Int8 => candle::Quantization::Int8,
            Quantize::Int4 => candle::Quantization::Int4,
        }),
        kv_cache_memory: args.kv_cache_memory,
        device_memory_fraction: args.cuda_memory_fraction,
        block_size: BLOCK_SIZE,
        max_slots: args.max_batch_size,
        max_batch_tokens: batch_tokens(args).unwrap_or(MAX_BATCH_TOKENS),
        max_model_len: args.max_total_tokens,
    };
    match place {
        Place::Processor => {
            Ok(Box::new(Immediate::new(candle::load(&source, &options, progress)?)))
        }
        #[cfg(feature = "cuda")]
        Place::Gpu => Ok(Box::new(candle::cuda::load(0, &source, &options, progress)?)),
    }
}

/// Tokens of a step, if the user has said how many of them prompts may have: every sequence may
/// decode beside them.
fn batch_tokens(args: &ModelArgs) -> Option<u32> {
    args.max_batch_prefill_tokens.map(|tokens| tokens.saturating_add(args.max_batch_size))
}

/// Reads `key=value` pairs, separated by commas; what is not named follows the other flags.
fn mock_config(settings: &str, args: &ModelArgs) -> Result<MockConfig, LoadError> {
    let mut config = MockConfig {
        block_size: BLOCK_SIZE,
        max_slots: args.max_batch_size,
        ..MockConfig::default()
    };
    config.max_batch_tokens = batch_tokens(args).unwrap_or(config.max_batch_tokens);
    config.max_model_len = args.max_total_tokens.unwrap_or(config.max_model_len);
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        let wrong = |reason: &str| LoadError::Invalid {
            file: format!("--mock={settings}"),
            reason: format!("`{setting}` {reason}"),
        };
        let (key, value) = setting.split_once('=').ok_or_else(|| wrong("is not key=value"))?;
        let value: u32 = value.parse().map_err(|_| wrong("has no number as its value"))?;
        match key {
            "vocab_size" => config.vocab_size = value,
            "num_blocks" => config.cache_groups = vec![MockGroup::full(value)],
            "eos_every" => config.eos_every = Some(value),
            "step_delay_ms" => config.step_delay = Duration::from_millis(u64::from(value)),
            "trusting" => config.trusting = value != 0,
            _ => return Err(wrong("is no setting of the mock")),
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        model: ModelArgs,
    }

    #[test]
    fn every_sequence_may_decode_beside_the_prompts_of_a_step() {
        let config = |flags: &str| {
            let words = ["millstream"].into_iter().chain(flags.split_whitespace());
            mock_config("", &Flags::parse_from(words).model).unwrap()
        };
        let limited = config("--max-batch-prefill-tokens 512 --max-batch-size 8");
        assert_eq!((limited.max_batch_tokens, limited.max_slots), (520, 8));
        assert_eq!(config("").max_batch_tokens, MockConfig::default().max_batch_tokens);
    }
}
