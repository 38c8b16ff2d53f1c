//! Flags of `millstream bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values::{Secret, http_url, secret};

/// Flags of `millstream bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Server to load, as http://HOST:PORT.
    #[arg(long, default_value = "http://127.0.0.1:3000", value_name = "URL", value_parser = http_url)]
    pub(crate) url: String,

    /// Key to send as `Authorization: Bearer KEY`. Default: none.
    #[arg(long, env = "API_KEY", hide_env_values = true, value_name = "KEY", value_parser = secret)]
    pub(crate) api_key: Option<Secret>,

    /// Model to ask for. Default: the first that the server lists.
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,

    /// What is asked: `completions` sends random token ids, `chat` a message of random words.
    #[arg(long, default_value = "completions", value_name = "ENDPOINT")]
    pub(crate) endpoint: EndpointArg,

    /// Streams that run at the same time; each starts its next request when the last one ended.
    #[arg(short, long, default_value_t = 16, value_name = "STREAMS",
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) concurrency: u32,

    /// Requests to send in all, over all streams.
    #[arg(short = 'n', long, default_value_t = 128, value_name = "REQUESTS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) requests: u32,

    /// Length of a prompt: in tokens for completions, in words for chat.
    #[arg(long, default_value_t = 128, value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub(crate) prompt_tokens: u32,

    /// Tokens that each request generates, exactly: the end of text is ignored.
    #[arg(long, default_value_t = 64, value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub(crate) output_tokens: u32,

    /// Token ids of random prompts are below this number.
    #[arg(long, default_value_t = 1000, value_name = "IDS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) vocab_size: u32,

    /// Seed of the random prompts: equal seeds send equal prompts.
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    pub(crate) seed: u64,

    /// File to write the report to as JSON; `-` prints it instead of the table. Default: none.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// What is asked of the server.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum EndpointArg {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}
