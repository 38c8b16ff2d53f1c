//! Flags of `millstream serve`.

use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};

use super::values::{Secret, positive_seconds, seconds, secret};
use super::{LogArgs, ModelArgs};

/// Flags of `millstream serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Branch, tag or commit of a model from the hub. Default: its branch main.
    #[arg(long, env = "REVISION", value_name = "REVISION", help_heading = "Model")]
    pub(crate) revision: Option<String>,

    /// Name under which the API serves the model; requests name it. Default: `millstream-demo`, or
    /// the value of --model-id.
    #[arg(long, env = "SERVED_MODEL_NAME", value_name = "NAME", help_heading = "Model")]
    pub(crate) served_model_name: Option<String>,

    /// Sampling of requests that do not say: `auto` takes what the model's generation_config.json
    /// recommends (temperature, top_p, .. and its max_new_tokens), `none` (or `vllm`) the defaults
    /// of OpenAI's API. What ends a text is read either way.
    #[arg(
        long,
        env = "GENERATION_CONFIG",
        value_enum,
        default_value = "auto",
        value_name = "SOURCE",
        help_heading = "Model"
    )]
    pub(crate) generation_config: GenerationConfig,

    /// Keep the keys and values of finished text, so that a prompt which begins like an earlier one
    /// computes only what is new: true or false.
    #[arg(long, env = "PREFIX_CACHING", default_value = "true", value_name = "BOOL",
          value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set,
          help_heading = "Model")]
    pub(crate) prefix_caching: bool,

    /// Address to listen on: an IP address or `localhost`; 0.0.0.0 is every interface. Anything
    /// else, such as the name that Docker and some shells put into HOSTNAME, is warned about and
    /// means the default.
    #[arg(
        long,
        env = "HOSTNAME",
        default_value = "127.0.0.1",
        value_name = "ADDRESS",
        help_heading = "HTTP"
    )]
    pub(crate) hostname: String,

    /// TCP port to listen on; 0 takes a free one, which the greeting names.
    #[arg(
        short,
        long,
        env = "PORT",
        default_value_t = 3000,
        value_name = "PORT",
        help_heading = "HTTP"
    )]
    pub(crate) port: u16,

    /// Key that every request but health checks must carry, as `Authorization: Bearer KEY`.
    /// Default: none, requests are open to all that reach the port.
    #[arg(long, env = "API_KEY", hide_env_values = true, value_name = "KEY", value_parser = secret,
          help_heading = "HTTP")]
    pub(crate) api_key: Option<Secret>,

    /// Size of a request's body, in bytes, at most; larger ones are answered with 413.
    #[arg(long, env = "PAYLOAD_LIMIT", default_value_t = 2_000_000, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1..), help_heading = "HTTP")]
    pub(crate) payload_limit: u64,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// What one client, and all together, may ask for.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Sequences that run or wait at once, at most; a request beyond is answered with 429.
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS", default_value_t = 512, value_name = "SEQUENCES",
          value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub(crate) max_concurrent_requests: u32,

    /// Longest prompt, in tokens; a longer one is answered with 400. Default: whatever leaves one
    /// token of --max-total-tokens for the output.
    #[arg(long, alias = "max-input-length", env = "MAX_INPUT_TOKENS", value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_input_tokens: Option<u32>,

    /// Stop strings that one request may name, at most.
    #[arg(long, env = "MAX_STOP_SEQUENCES", default_value_t = 16, value_name = "STRINGS")]
    pub(crate) max_stop_sequences: u32,

    /// Prompts that one request may hold, at most.
    #[arg(long, env = "MAX_CLIENT_BATCH_SIZE", default_value_t = 32, value_name = "PROMPTS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_client_batch_size: u32,

    /// Most likely tokens that a request may have reported per position, at most.
    #[arg(long, env = "MAX_TOP_N_TOKENS", default_value_t = 20, value_name = "TOKENS")]
    pub(crate) max_top_n_tokens: u32,

    /// Threads that render and encode prompts, at most.
    #[arg(long, env = "VALIDATION_WORKERS", default_value_t = 2, value_name = "THREADS",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) validation_workers: u32,
}

/// How long what is waited for.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Timeouts")]
pub(crate) struct TimeoutArgs {
    /// Seconds that running streams get to finish after SIGTERM or Ctrl-C; what is left then ends
    /// with an error event.
    #[arg(short, long, env = "GRACEFUL_TERMINATION_TIMEOUT", default_value = "90",
          value_name = "SECONDS", value_parser = seconds)]
    pub(crate) graceful_termination_timeout: Duration,

    /// Seconds that streams wait for a new worker after theirs was lost; then they end with an
    /// error.
    #[arg(long, env = "RESUME_TIMEOUT", default_value = "60", value_name = "SECONDS",
          value_parser = seconds)]
    pub(crate) resume_timeout: Duration,

    /// Seconds that one step may take on the worker, which is given up and started again after
    /// that.
    #[arg(long, env = "STEP_TIMEOUT", default_value = "60", value_name = "SECONDS",
          value_parser = positive_seconds)]
    pub(crate) step_timeout: Duration,

    /// Seconds that a client may take nothing of what is ready for it; then its request is
    /// cancelled.
    #[arg(long, env = "CLIENT_TIMEOUT", default_value = "60", value_name = "SECONDS",
          value_parser = positive_seconds)]
    pub(crate) client_timeout: Duration,

    /// Seconds that a worker may take to load its model; one that takes longer is ended, and with
    /// it the start.
    #[arg(long, env = "WORKER_START_TIMEOUT", default_value = "600", value_name = "SECONDS",
          value_parser = positive_seconds)]
    pub(crate) worker_start_timeout: Duration,
}

/// Where the sampling of requests that do not say comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GenerationConfig {
    /// The model's generation_config.json.
    Auto,
    /// The API's own defaults.
    #[value(alias = "vllm")]
    None,
}
