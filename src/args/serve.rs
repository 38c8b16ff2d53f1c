//! Flags of `millstream serve`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use millstream_router::Origin;
use millstream_router::text::{FormatChoice, ReasoningFormat, ToolFormat};
use serde_json::{Map, Value};

use super::tgi::TgiArgs;
use super::values::{Secret, json_object, positive_seconds, seconds, secret};
use super::{DeploymentArgs, LogArgs, ModelArgs};

/// Where Hugging Face's Inference Endpoints put the model.
const REPOSITORY: &str = "/repository";

/// Flags of `millstream serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Branch, tag or commit of a model from the hub. Default: its branch main.
    #[arg(
        long,
        env = "REVISION",
        value_name = "REVISION",
        help_heading = "Model",
        display_order = 999
    )]
    pub(crate) revision: Option<String>,

    /// Name under which the API serves the model; requests name it. Default: `millstream-demo`, or
    /// the value of --model-id.
    #[arg(
        long,
        env = "SERVED_MODEL_NAME",
        value_name = "NAME",
        help_heading = "Model",
        display_order = 1000
    )]
    pub(crate) served_model_name: Option<String>,

    #[command(flatten)]
    pub(crate) server: ServerArgs,

    #[command(flatten)]
    pub(crate) deployment: DeploymentArgs,

    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Keep the keys and values of finished text, so that a prompt which begins like an earlier one
    /// computes only what is new: true or false.
    #[arg(long, env = "PREFIX_CACHING", default_value = "true", value_name = "BOOL",
          value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set,
          help_heading = "Scheduling")]
    pub(crate) prefix_caching: bool,

    /// Threads that render and encode prompts, at most.
    #[arg(long, env = "VALIDATION_WORKERS", default_value_t = 2, value_name = "THREADS",
          value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Scheduling")]
    pub(crate) validation_workers: u32,

    /// Sampling of requests that do not say: `auto` takes what the model's generation_config.json
    /// recommends (temperature, top_p, .. and its max_new_tokens), `none` (or `vllm`) the defaults
    /// of OpenAI's API. What ends a text is read either way.
    #[arg(
        long,
        env = "GENERATION_CONFIG",
        value_enum,
        default_value = "auto",
        value_name = "SOURCE",
        help_heading = "Sampling defaults"
    )]
    pub(crate) generation_config: GenerationConfig,

    /// Directory of the files that were downloaded from the hub; the variable HF_HUB_CACHE wins over
    /// it. Default: `hub` in the directory that the variable HF_HOME names.
    #[arg(long, env = "HUGGINGFACE_HUB_CACHE", value_name = "DIR", help_heading = "Model")]
    pub(crate) huggingface_hub_cache: Option<String>,

    /// Directory that is read in place of the model that --model-id names: config.json, weights,
    /// tokenizer. A --model-id that is a directory itself wins. Default: none.
    #[arg(long, env = "WEIGHTS_CACHE_OVERRIDE", value_name = "DIR", help_heading = "Model")]
    pub(crate) weights_cache_override: Option<String>,

    /// File to read in place of the model's tokenizer_config.json; the chat template in it, if
    /// there is one, wins over all of the model's. Default: the model's own.
    #[arg(long, env = "TOKENIZER_CONFIG_PATH", value_name = "FILE", help_heading = "Model")]
    pub(crate) tokenizer_config_path: Option<PathBuf>,

    /// Variables that chat templates see where a request does not set them in its
    /// chat_template_kwargs, as a JSON object: {"enable_thinking": false}. Default: none.
    #[arg(long, env = "CHAT_TEMPLATE_KWARGS", value_name = "JSON", value_parser = json_object,
          help_heading = "Model")]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,

    /// How the model writes tool calls: `auto` reads it off the chat template; `hermes` (also
    /// Qwen2.5 and Qwen3), `qwen3_coder`, `llama3_json`, `mistral` and `openai` (gpt-oss) name it;
    /// with `none`, or where the template shows none of these, requests with tools must require a
    /// call, which a grammar then holds to the form of `hermes`.
    #[arg(
        long,
        env = "TOOL_CALL_PARSER",
        value_enum,
        default_value = "auto",
        value_name = "FORMAT",
        help_heading = "Model"
    )]
    pub(crate) tool_call_parser: ToolCallParser,

    /// How the model marks its reasoning, which is then no part of an answer's content: `auto` reads
    /// it off the chat template; `deepseek_r1` and `qwen3` (`<think>..</think>`) and `openai`
    /// (gpt-oss) name it; `none` leaves all text in the content.
    #[arg(
        long,
        env = "REASONING_PARSER",
        value_enum,
        default_value = "auto",
        value_name = "FORMAT",
        help_heading = "Model"
    )]
    pub(crate) reasoning_parser: ReasoningParser,

    #[command(flatten)]
    pub(crate) log: LogArgs,

    /// Print what `millstream env` prints before anything is started.
    #[arg(short, long, help_heading = "Logging")]
    pub(crate) env: bool,

    #[command(flatten)]
    pub(crate) tgi: TgiArgs,
}

/// Who can reach the server, and how.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// Address to listen on: an IP address or `localhost`; 0.0.0.0 is every interface. The variable
    /// may hold the name of the machine, as Docker and some shells set it: that is no address, and
    /// means the default. Default: the value of --default-hostname.
    #[arg(long, env = "HOSTNAME", value_name = "ADDRESS")]
    pub(crate) hostname: Option<String>,

    /// Address to listen on where HOSTNAME holds none, for container images, which cannot keep the
    /// name of the container out of that variable. Default: 127.0.0.1.
    #[arg(long, env = "DEFAULT_HOSTNAME", value_name = "ADDRESS")]
    pub(crate) default_hostname: Option<IpAddr>,

    /// TCP port to listen on; 0 takes a free one, which the greeting names.
    #[arg(short, long, env = "PORT", default_value_t = 3000, value_name = "PORT")]
    pub(crate) port: u16,

    /// Key that every request but health checks and metrics must carry, as `Authorization: Bearer
    /// KEY`. Default: none, requests are open to all that reach the port.
    #[arg(long, env = "API_KEY", hide_env_values = true, value_name = "KEY", value_parser = secret)]
    pub(crate) api_key: Option<Secret>,

    /// Origins whose web pages may read answers, as `https://chat.example.com`; several are
    /// separated by commas, and * is every one. Default: every one.
    #[arg(long, env = "CORS_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub(crate) cors_allow_origin: Vec<Origin>,

    /// Where the worker's socket lies: a private directory is made whose name begins so. Default:
    /// `millstream-` in the directory for temporary files.
    #[arg(long, env = "SHARD_UDS_PATH", value_name = "PATH")]
    pub(crate) shard_uds_path: Option<PathBuf>,
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
    #[arg(long, env = "MAX_INPUT_TOKENS", value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_input_tokens: Option<u32>,

    /// An older name of --max-input-tokens; only one of them may be given. Default: none.
    #[arg(long, env = "MAX_INPUT_LENGTH", value_name = "TOKENS", hide = true,
          value_parser = clap::value_parser!(u32).range(1..))]
    max_input_length: Option<u32>,

    /// Choices that one request may ask for per prompt (`n`, `best_of`), at most.
    #[arg(long, env = "MAX_BEST_OF", default_value_t = 128, value_name = "CHOICES",
          value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub(crate) max_best_of: u32,

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

    /// Size of a request's body, in bytes, at most; larger ones are answered with 413.
    #[arg(long, env = "PAYLOAD_LIMIT", default_value_t = 2_000_000, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) payload_limit: u64,
}

/// How long what is waited for.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
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

/// How the model writes tool calls, under vLLM's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum ToolCallParser {
    /// As the chat template shows.
    Auto,
    /// In no form that is looked for.
    None,
    /// JSON between `<tool_call>` tags.
    Hermes,
    /// Tags within `<tool_call>` tags.
    #[value(name = "qwen3_coder", alias = "qwen3_xml")]
    Qwen3Coder,
    /// JSON alone.
    #[value(name = "llama3_json", alias = "llama4_json")]
    Llama3Json,
    /// Behind `[TOOL_CALLS]`.
    Mistral,
    /// As messages to functions.
    Openai,
}

impl ToolCallParser {
    /// What the router reads.
    pub(crate) fn format(self) -> FormatChoice<ToolFormat> {
        match self {
            ToolCallParser::Auto => FormatChoice::Template,
            ToolCallParser::None => FormatChoice::None,
            ToolCallParser::Hermes => FormatChoice::Given(ToolFormat::Hermes),
            ToolCallParser::Qwen3Coder => FormatChoice::Given(ToolFormat::Qwen3Coder),
            ToolCallParser::Llama3Json => FormatChoice::Given(ToolFormat::Llama3Json),
            ToolCallParser::Mistral => FormatChoice::Given(ToolFormat::Mistral),
            ToolCallParser::Openai => FormatChoice::Given(ToolFormat::Harmony),
        }
    }
}

/// How the model marks its reasoning, under vLLM's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum ReasoningParser {
    /// As the chat template shows.
    Auto,
    /// In no form that is looked for.
    None,
    /// Between `<think>` tags.
    #[value(name = "deepseek_r1")]
    DeepseekR1,
    /// The same.
    #[value(name = "qwen3")]
    Qwen3,
    /// In a channel of its own.
    #[value(alias = "openai_gptoss")]
    Openai,
}

impl ReasoningParser {
    /// What the router reads.
    pub(crate) fn format(self) -> FormatChoice<ReasoningFormat> {
        match self {
            ReasoningParser::Auto => FormatChoice::Template,
            ReasoningParser::None => FormatChoice::None,
            ReasoningParser::DeepseekR1 | ReasoningParser::Qwen3 => {
                FormatChoice::Given(ReasoningFormat::Think)
            }
            ReasoningParser::Openai => FormatChoice::Given(ReasoningFormat::Harmony),
        }
    }
}

impl ServeArgs {
    /// What the flags mean together; an error where they cannot be meant together.
    pub(super) fn resolve(&mut self) -> Result<(), String> {
        self.tgi.check()?;
        self.server.port = self.deployment.aip_http_port.unwrap_or(self.server.port);
        let limits = &mut self.limits;
        if let (Some(tokens), Some(length)) = (limits.max_input_tokens, limits.max_input_length) {
            return Err(format!(
                "MAX_INPUT_LENGTH ({length}) and MAX_INPUT_TOKENS ({tokens}) are both set, and \
                 mean the same; set only MAX_INPUT_TOKENS"
            ));
        }
        limits.max_input_tokens = limits.max_input_tokens.or(limits.max_input_length);
        if let (Some(input), Some(total)) = (limits.max_input_tokens, self.model.max_total_tokens)
            && input >= total
        {
            return Err(format!(
                "MAX_INPUT_TOKENS ({input}) must be less than MAX_TOTAL_TOKENS ({total}), which \
                 counts prompt and output"
            ));
        }
        if self.model.mock.is_none() {
            self.choose_model(Path::new(REPOSITORY))?;
        }
        Ok(())
    }

    /// Takes another directory than --model-id names, where the environment means one.
    fn choose_model(&mut self, repository: &Path) -> Result<(), String> {
        let model_id = &mut self.model.model_id;
        if model_id.is_none() && repository.join("config.json").is_file() {
            *model_id = Some(repository.display().to_string());
        }
        let Some(directory) = &self.weights_cache_override else { return Ok(()) };
        if model_id.as_ref().is_some_and(|model_id| Path::new(model_id).is_dir()) {
            return Ok(());
        }
        if !Path::new(directory).join("config.json").is_file() {
            return Err(format!(
                "WEIGHTS_CACHE_OVERRIDE ({directory}) must be a directory that holds config.json"
            ));
        }
        if self.served_model_name.is_none() {
            self.served_model_name = model_id.take();
        }
        *model_id = Some(directory.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn serve(words: &[&str]) -> ServeArgs {
        Cli::parse_from([&["x"], words].concat()).serve
    }

    /// What is loaded, and the name that was asked for.
    fn chosen(words: &[&str], repository: &Path) -> (Option<String>, Option<String>) {
        let mut args = serve(words);
        args.choose_model(repository).unwrap();
        (args.model.model_id, args.served_model_name)
    }

    #[test]
    fn a_mounted_repository_is_the_model_where_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = Some(dir.path().to_str().unwrap().to_owned());
        assert_eq!(chosen(&[], dir.path()), (None, None));
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert_eq!(chosen(&[], dir.path()), (path, None));
        assert_eq!(chosen(&["--model-id", "a/b"], dir.path()), (Some("a/b".into()), None));
    }

    #[test]
    fn an_override_is_read_for_a_model_that_is_no_directory_and_keeps_its_name() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (path, absent) = (dir.path().to_str().unwrap(), Path::new("/absent"));
        let flag = ["--weights-cache-override", path];
        let error = serve(&flag).choose_model(absent).unwrap_err();
        assert!(error.contains("WEIGHTS_CACHE_OVERRIDE") && error.contains(path), "{error}");

        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let with = |model_id| chosen(&[&flag[..], &["--model-id", model_id]].concat(), absent);
        assert_eq!(chosen(&flag, absent), (Some(path.into()), None));
        assert_eq!(with("org/name"), (Some(path.into()), Some("org/name".into())));
        let local = other.path().to_str().unwrap();
        assert_eq!(with(local), (Some(local.into()), None));
    }

    #[test]
    fn limits_that_contradict_each_other_are_refused_by_name() {
        let error = |words: &[&str]| serve(words).resolve().unwrap_err();
        let both = error(&["--max-input-length", "7", "--max-input-tokens", "8"]);
        for part in ["MAX_INPUT_LENGTH (7)", "MAX_INPUT_TOKENS (8)"] {
            assert!(both.contains(part), "{both}");
        }
        let order = error(&["--max-input-length", "9", "--max-total-tokens", "9"]);
        assert!(order.contains("(9) must be less than"), "{order}");
        let mut older = serve(&["--max-input-length", "7"]);
        older.resolve().unwrap();
        assert_eq!(older.limits.max_input_tokens, Some(7));
    }
}
