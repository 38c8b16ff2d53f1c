//! Flags that say which model is run and how: `serve` hands them on to the worker that it starts.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};

use super::LogArgs;
use super::values::bytes;

/// Flags of `millstream worker`.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// Unix socket to listen on, a path; it is created, and one router at a time connects to it.
    #[arg(long, value_name = "PATH")]
    pub(crate) listen: PathBuf,

    /// End, and remove the socket and its directory, as soon as standard input is closed: `serve`
    /// holds the other end, so the worker never outlives it. Default: off.
    #[arg(long)]
    pub(crate) follow_stdin: bool,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// Which model is run, and how.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// Directory of the model, in Hugging Face layout (config.json, *.safetensors, tokenizer.json),
    /// or a GGUF file (*.gguf), or a directory with one and no safetensors, or the model's name on
    /// the Hugging Face hub, as ORG/NAME, from where `serve` downloads it.
    /// Default: the demo model that is part of this executable.
    #[arg(long, env = "MODEL_ID", value_name = "DIR|FILE|ORG/NAME")]
    pub(crate) model_id: Option<String>,

    /// Precision of the weights and of the KV cache; what a GGUF file has in blocks is unpacked to
    /// it. Default: as the checkpoint stores them; beside blocks, bfloat16.
    #[arg(long, env = "DTYPE", value_name = "DTYPE")]
    pub(crate) dtype: Option<Dtype>,

    /// Quantise the weights while they are loaded, which makes them smaller and decoding faster:
    /// `int8` keeps 8.25 bits of each, `int4` 4.5, but for the head, which keeps 8.25; tables of
    /// embeddings and the choice of experts stay as they are. Default: weights are not quantised.
    #[arg(long, env = "QUANTIZE", value_name = "METHOD", value_parser = quantize)]
    pub(crate) quantize: Option<Quantize>,

    /// Where the weights come from: `auto` reads them from the model's directory, `dummy` fills
    /// them with seeded random numbers, to measure speed without a download.
    #[arg(long, env = "LOAD_FORMAT", default_value = "auto", value_name = "FORMAT")]
    pub(crate) load_format: LoadFormat,

    /// What computes: `auto` takes the GPU where there is one and the executable millstream-cuda
    /// stands beside this one, and else the processor; `cpu` the processor; `cuda` the GPU, or nothing.
    #[arg(long, env = "DEVICE", default_value = "auto", value_name = "DEVICE", value_parser = device)]
    pub(crate) device: Device,

    /// Threads that compute, the one that runs the steps counted in. Default: one for each physical
    /// core that the process may use, because what is computed keeps a core's units busy.
    #[arg(long, env = "CPU_THREADS", value_name = "THREADS",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) cpu_threads: Option<u16>,

    /// Keep each compute thread on a processor of its own, for machines that do nothing else: true
    /// or false.
    #[arg(long, env = "PIN_CPU_THREADS", default_value = "false", value_name = "BOOL",
          value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) pin_cpu_threads: bool,

    /// Memory for keys and values, in bytes or with a unit (512MiB, 8GB): more memory lets more and
    /// longer sequences run at once. Without a GPU it is taken from the system as it is needed, and a
    /// part of it ahead of that: an eighth, 2 GiB at most. Default: half of the memory that is free
    /// after loading; on a GPU, what is left there.
    #[arg(long, env = "KV_CACHE_MEMORY", value_name = "BYTES", value_parser = bytes,
          help_heading = "Scheduling")]
    pub(crate) kv_cache_memory: Option<u64>,

    /// Share of a GPU's memory that is used at most, weights, activations and KV cache together: above
    /// 0, up to 1.
    #[arg(long, env = "CUDA_MEMORY_FRACTION", default_value = "1.0", value_name = "FRACTION",
          value_parser = fraction, help_heading = "Scheduling")]
    pub(crate) cuda_memory_fraction: f64,

    /// Sequences that run at once, at most; others wait. Higher is more throughput and slower
    /// single streams.
    #[arg(long, env = "MAX_BATCH_SIZE", default_value_t = 256, value_name = "SEQUENCES",
          value_parser = clap::value_parser!(u32).range(1..=65_536),
          help_heading = "Scheduling")]
    pub(crate) max_batch_size: u32,

    /// Tokens of prompts that one step computes at most, beside the sequences that decode: longer
    /// prompts are cut into chunks, so lower means smoother streams, higher a sooner first token.
    /// Default: timed at start, so that prompts make a step some 300 ms longer.
    #[arg(long, env = "MAX_BATCH_PREFILL_TOKENS", value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..=1_048_576),
          help_heading = "Scheduling")]
    pub(crate) max_batch_prefill_tokens: Option<u32>,

    /// Longest sequence, prompt and output together, in tokens. Default: what the model and the KV
    /// cache allow.
    #[arg(long, env = "MAX_TOTAL_TOKENS", value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(2..=16_777_216),
          help_heading = "Limits")]
    pub(crate) max_total_tokens: Option<u32>,

    /// Serve the mock model instead, for benchmarks of the router and for tests: `key=value` pairs,
    /// separated by commas.
    #[arg(long, hide = true, value_name = "SETTINGS", num_args = 0..=1, require_equals = true,
          default_missing_value = "", conflicts_with = "model_id")]
    pub(crate) mock: Option<String>,
}

/// Precision of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// 32 bits.
    #[value(alias = "float32")]
    F32,
    /// 16 bits, IEEE half.
    #[value(alias = "float16")]
    F16,
    /// 16 bits with the range of f32.
    #[value(alias = "bfloat16")]
    Bf16,
}

/// What weights are quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantize {
    /// Integers of 8 bits.
    Int8,
    /// Integers of 4 bits.
    Int4,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadFormat {
    /// From the model's directory.
    Auto,
    /// Random, from a seed.
    Dummy,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// The GPU if one can be used, the processor otherwise.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU.
    Cuda,
}

fn quantize(text: &str) -> Result<Quantize, String> {
    const ALREADY: &str = "weights that are quantised already are not read; give the checkpoint \
        that is not quantised, with int8 or int4";
    const FOR_GPUS: &str = "it is made for GPUs";
    match text.to_lowercase().as_str() {
        "int8" => Ok(Quantize::Int8),
        "int4" => Ok(Quantize::Int4),
        // What TGI takes.
        "awq" | "compressed-tensors" | "exl2" | "gptq" | "marlin" => Err(ALREADY.into()),
        "bitsandbytes" | "eetq" | "fp8" => Err(format!("{FOR_GPUS}; int8 has as many bits")),
        "bitsandbytes-fp4" | "bitsandbytes-nf4" => {
            Err(format!("{FOR_GPUS}; int4 has as many bits"))
        }
        _ => Err("expected int8 or int4".into()),
    }
}

fn device(text: &str) -> Result<Device, String> {
    match text {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda),
        _ => Err("expected auto, cpu or cuda".into()),
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(fraction) if fraction > 0.0 && fraction <= 1.0 => Ok(fraction),
        _ => Err("expected a number above 0 and up to 1".into()),
    }
}

fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl ModelArgs {
    /// The flags that make a worker parse equal arguments.
    pub(crate) fn command_line(&self) -> Vec<OsString> {
        let mut words = vec![
            format!("--load-format={}", value_name(&self.load_format)),
            format!("--max-batch-size={}", self.max_batch_size),
            format!("--cuda-memory-fraction={}", self.cuda_memory_fraction),
            match self.device {
                Device::Auto => "--device=auto".to_owned(),
                Device::Cpu => "--device=cpu".to_owned(),
                Device::Cuda => "--device=cuda".to_owned(),
            },
        ];
        words.extend(self.cpu_threads.map(|count| format!("--cpu-threads={count}")));
        words.push(format!("--pin-cpu-threads={}", self.pin_cpu_threads));
        words.extend(self.model_id.as_ref().map(|id| format!("--model-id={id}")));
        words.extend(self.dtype.as_ref().map(|dtype| format!("--dtype={}", value_name(dtype))));
        words.extend(self.quantize.map(|method| match method {
            Quantize::Int8 => "--quantize=int8".to_owned(),
            Quantize::Int4 => "--quantize=int4".to_owned(),
        }));
        words.extend(self.kv_cache_memory.map(|bytes| format!("--kv-cache-memory={bytes}")));
        let tokens = self.max_batch_prefill_tokens;
        words.extend(tokens.map(|tokens| format!("--max-batch-prefill-tokens={tokens}")));
        words.extend(self.max_total_tokens.map(|tokens| format!("--max-total-tokens={tokens}")));
        words.extend(self.mock.as_ref().map(|settings| format!("--mock={settings}")));
        words.into_iter().map(OsString::from).collect()
    }
}
