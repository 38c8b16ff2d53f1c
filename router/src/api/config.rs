//! What the operator decides about the HTTP side.

use std::time::Duration;

use millstream_proto::WorkerInfo;

use super::cors::Origin;
use crate::engine::core::EngineConfig;

/// Limits of one request and of all together; each is checked where a request enters.
#[derive(Clone, Debug)]
pub struct RequestLimits {
    /// Sequences queued or running; one more is answered with 429.
    pub max_concurrent_requests: usize,
    /// Prompt tokens; `None` leaves room for one generated token.
    pub max_input_tokens: Option<usize>,
    /// Prompt and generated tokens; `None` is what the model and its cache allow.
    pub max_total_tokens: Option<usize>,
    /// Stop strings.
    pub max_stop_sequences: usize,
    /// Prompts in one request.
    pub max_client_batch_size: usize,
    /// Choices per prompt (`n`).
    pub max_choices: usize,
    /// Alternatives reported per token.
    pub max_top_logprobs: usize,
    /// Bytes of a request's body.
    pub payload_limit: usize,
}

impl Default for RequestLimits {
    fn default() -> RequestLimits {
        RequestLimits {
            max_concurrent_requests: 512,
            max_input_tokens: None,
            max_total_tokens: None,
            max_stop_sequences: 16,
            max_client_batch_size: 32,
            max_choices: 128,
            max_top_logprobs: 20,
            payload_limit: 2_000_000,
        }
    }
}

/// Called once, when the first worker is ready.
pub type OnReady = Box<dyn FnOnce(&WorkerInfo) + Send>;

/// What a platform and its tools want to know of a deployment, or decide about it.
#[derive(Clone, Debug, Default)]
pub struct Deployment {
    /// The hardware, as the header `x-compute-type` names it; `None` is `cpu`.
    pub compute_type: Option<String>,
    /// Where Vertex AI sends its requests, beside `/vertex`.
    pub predict_route: Option<String>,
    /// Where Vertex AI asks for health, beside `/health`.
    pub health_route: Option<String>,
    /// The commit of the model on the hub.
    pub model_sha: Option<String>,
    /// The commit that this server was built from.
    pub build_sha: Option<String>,
}

/// Everything that `serve` needs to know beside the model's text side and the worker.
pub struct RouterConfig {
    /// The name that requests use and responses show.
    pub model_name: String,
    /// Other names that are accepted.
    pub model_aliases: Vec<String>,
    /// Asked for on every route but health and metrics; `None` asks for nothing.
    pub api_key: Option<String>,
    /// Where it runs.
    pub deployment: Deployment,
    /// Origins whose web pages may read answers; none at all stands for every one.
    pub cors_allow_origin: Vec<Origin>,
    /// Limits of requests.
    pub limits: RequestLimits,
    /// Prompts that are encoded at a time.
    pub validation_workers: usize,
    /// The scheduler's side.
    pub engine: EngineConfig,
    /// After a shutdown began, streams may finish for so long.
    pub graceful_termination_timeout: Duration,
    /// A client that takes nothing, or sends its body, for so long is gone.
    pub client_timeout: Duration,
    /// A silent stream is kept open by a comment this often.
    pub keep_alive: Duration,
    /// Called once, when the first worker is ready.
    pub on_ready: Option<OnReady>,
}

impl RouterConfig {
    /// The defaults, for a model served under this name.
    pub fn new(model_name: impl Into<String>, engine: EngineConfig) -> RouterConfig {
        RouterConfig {
            model_name: model_name.into(),
            model_aliases: Vec::new(),
            api_key: None,
            deployment: Deployment::default(),
            cors_allow_origin: Vec::new(),
            limits: RequestLimits::default(),
            validation_workers: 2,
            engine,
            graceful_termination_timeout: Duration::from_secs(90),
            client_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(15),
            on_ready: None,
        }
    }
}
