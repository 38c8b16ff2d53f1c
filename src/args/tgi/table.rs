//! Every variable of TGI's launcher, and what becomes of it here.
//!
//! The order is that of the launcher's own arguments, then of what it and its children read from
//! the environment alone.

use super::Fate::{self, Honoured, Ignored, Refused};
use super::Form::{self, Environment, Switch, Value};

/// A variable of TGI.
#[derive(Debug)]
pub(crate) struct Variable {
    /// Its name; a flag is the same in lower case, with hyphens.
    pub(crate) name: &'static str,
    /// How it can be given.
    pub(crate) form: Form,
    /// What becomes of it.
    pub(crate) fate: Fate,
    /// Values that ask for nothing, in lower case: they are neither refused nor told.
    pub(crate) neutral: &'static [&'static str],
}

const FALSE: &[&str] = &["false", "f", "no", "n", "off", "0"];
const ONE: &[&str] = &["1", "1.0"];
const NONE: &[&str] = &[];

/// A variable that a flag of `serve` takes.
const fn honoured(name: &'static str, note: &'static str) -> Variable {
    Variable { name, form: Value(""), fate: Honoured(note), neutral: NONE }
}

/// A variable without a flag that is taken.
const fn read(name: &'static str, note: &'static str) -> Variable {
    Variable { name, form: Environment, fate: Honoured(note), neutral: NONE }
}

/// A variable that has no effect, and changes no answer.
const fn ignored(name: &'static str, form: Form, reason: &'static str) -> Variable {
    let neutral = if let Switch = form { FALSE } else { NONE };
    Variable { name, form, fate: Ignored(reason), neutral }
}

/// A variable that is not passed over: answers would be others, or safety less, than asked for.
const fn refused(name: &'static str, value: &'static str, rule: &'static str) -> Variable {
    Variable { name, form: Value(value), fate: Refused(rule), neutral: NONE }
}

impl Variable {
    const fn unless(self, neutral: &'static [&'static str]) -> Variable {
        Variable { neutral, ..self }
    }
}

const STEPS: &str = "waiting requests join at every step";
const NVIDIA_ONLY: &str = "only GPUs of NVIDIA are supported";
const NO_TRACES: &str = "traces are not exported";
const NO_WATERMARK: &str = "there is no watermark, and a request for one is refused";
const NO_TUNNEL: &str = "no tunnel is opened";
const ONE_MACHINE: &str = "one worker on this machine runs the model";
const NO_QUANTISED: &str = "quantised weights are not read";

pub(super) const TABLE: &[Variable] = &[
    honoured("MODEL_ID", "default `/repository` if that holds a model, else the demo model"),
    honoured("REVISION", "default `main`"),
    honoured("VALIDATION_WORKERS", ""),
    refused("SHARDED", "BOOL", "one worker runs the whole model; leave it out or set it to false")
        .unless(FALSE),
    refused("NUM_SHARD", "SHARDS", "one worker runs the whole model; leave it out or set it to 1")
        .unless(ONE),
    honoured(
        "QUANTIZE",
        "`int8` and `int4`, of a checkpoint that is not quantised; TGI's own methods end the start",
    ),
    ignored("SPECULATE", Value("TOKENS"), "no drafts are made; the texts are the same")
        .unless(&["0"]),
    honoured("DTYPE", "also `float32`"),
    refused(
        "KV_CACHE_DTYPE",
        "DTYPE",
        "keys and values keep the precision of the weights; leave it out, and make room with \
         KV_CACHE_MEMORY",
    )
    .unless(&["auto"]),
    ignored("TRUST_REMOTE_CODE", Switch, "code of a checkpoint is never run"),
    honoured("MAX_CONCURRENT_REQUESTS", "default 512"),
    honoured("MAX_BEST_OF", "limits `n` too; default 128"),
    honoured("MAX_STOP_SEQUENCES", "default 16"),
    honoured("MAX_TOP_N_TOKENS", "default 20"),
    honoured("MAX_INPUT_TOKENS", ""),
    honoured("MAX_INPUT_LENGTH", "together with MAX_INPUT_TOKENS it is an error, as in TGI"),
    honoured("MAX_TOTAL_TOKENS", ""),
    ignored("WAITING_SERVED_RATIO", Value("RATIO"), STEPS),
    honoured("MAX_BATCH_PREFILL_TOKENS", "tokens of prompts in one step"),
    ignored(
        "MAX_BATCH_TOTAL_TOKENS",
        Value("TOKENS"),
        "the KV cache takes the memory that is free; KV_CACHE_MEMORY sets it",
    ),
    ignored("MAX_WAITING_TOKENS", Value("TOKENS"), STEPS),
    honoured("MAX_BATCH_SIZE", "default 256"),
    ignored("CUDA_GRAPHS", Value("SIZES"), "steps are recorded where that helps").unless(&["0"]),
    honoured(
        "HOSTNAME",
        "what is no address, such as a container's name, means 127.0.0.1, in the image 0.0.0.0",
    ),
    honoured("PORT", "default 3000, in the image 80"),
    ignored("PROMETHEUS_PORT", Value("PORT"), "metrics are served on PORT, under /metrics"),
    honoured("SHARD_UDS_PATH", "a private directory of that name and six more letters"),
    ignored("MASTER_ADDR", Value("ADDRESS"), ONE_MACHINE),
    ignored("MASTER_PORT", Value("PORT"), ONE_MACHINE),
    honoured("HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE wins over it, as in Python"),
    honoured("WEIGHTS_CACHE_OVERRIDE", "a directory with the whole model, not its weights alone"),
    ignored("DISABLE_CUSTOM_KERNELS", Switch, "there are no others to fall back to"),
    honoured("CUDA_MEMORY_FRACTION", "of the GPU's memory; no effect on the processor"),
    refused(
        "ROPE_SCALING",
        "KIND",
        "positions are scaled as the checkpoint says; leave it out and set rope_scaling in its \
         config.json",
    )
    .unless(&["linear"]),
    refused(
        "ROPE_FACTOR",
        "FACTOR",
        "positions are scaled as the checkpoint says; leave it out and set rope_scaling in its \
         config.json",
    )
    .unless(ONE),
    honoured("JSON_OUTPUT", ""),
    ignored("OTLP_ENDPOINT", Value("URL"), NO_TRACES),
    ignored("OTLP_SERVICE_NAME", Value("NAME"), NO_TRACES),
    honoured("CORS_ALLOW_ORIGIN", "also several, separated by commas; default any, as in TGI"),
    honoured("API_KEY", "compared exactly; TGI ignores case"),
    ignored("WATERMARK_GAMMA", Value("GAMMA"), NO_WATERMARK),
    ignored("WATERMARK_DELTA", Value("DELTA"), NO_WATERMARK),
    ignored("NGROK", Switch, NO_TUNNEL),
    ignored("NGROK_AUTHTOKEN", Value("TOKEN"), NO_TUNNEL),
    ignored("NGROK_EDGE", Value("EDGE"), NO_TUNNEL),
    honoured("TOKENIZER_CONFIG_PATH", "its chat template, if it has one, wins over all others"),
    ignored("DISABLE_GRAMMAR_SUPPORT", Switch, "a grammar costs nothing where none is asked for"),
    honoured("MAX_CLIENT_BATCH_SIZE", "default 32"),
    refused(
        "LORA_ADAPTERS",
        "ADAPTERS",
        "adapters are not applied; leave it out and give a model into which they are merged",
    ),
    ignored("USAGE_STATS", Value("LEVEL"), "nothing is ever reported to anybody").unless(&["off"]),
    honoured("PAYLOAD_LIMIT", ""),
    ignored(
        "ENABLE_PREFILL_LOGPROBS",
        Switch,
        "log-probabilities of a prompt are there for every request that asks for them",
    ),
    honoured("GRACEFUL_TERMINATION_TIMEOUT", ""),
    // Without a flag.
    read("HF_TOKEN", ""),
    read("HUGGING_FACE_HUB_TOKEN", ""),
    read("HF_API_TOKEN", ""),
    read("HF_HOME", "in the image `/data`"),
    read("HF_HUB_OFFLINE", ""),
    ignored("HF_HUB_ENABLE_HF_TRANSFER", Environment, "downloads are parallel without it")
        .unless(FALSE),
    read("HF_HUB_USER_AGENT_ORIGIN", ""),
    read("LOG_LEVEL", "also a flag"),
    read("LOG_FORMAT", "also a flag"),
    read("LOG_COLORIZE", "also a flag"),
    read("PREFIX_CACHING", "also a flag"),
    ignored("PREFILL_CHUNKING", Environment, "long prompts are always cut into chunks")
        .unless(&["1", "true"]),
    ignored("ATTENTION", Environment, "there is one implementation"),
    ignored("USE_FLASH_ATTENTION", Environment, "there is one implementation").unless(&["true"]),
    ignored("TGI_WIGGLE_ROOM", Environment, "KV_CACHE_MEMORY limits what is taken"),
    read("COMPUTE_TYPE", "default `cpu`; also a flag"),
    read("CUDA_VISIBLE_DEVICES", "the driver reads it; the first one is used"),
    // The container runtime reads it first, and sets these values by itself.
    ignored("NVIDIA_VISIBLE_DEVICES", Environment, "the container runtime reads it")
        .unless(&["all", "void", "none"]),
    ignored("ZE_AFFINITY_MASK", Environment, NVIDIA_ONLY),
    ignored("XPU_MEMORY_FRACTION", Environment, NVIDIA_ONLY),
    ignored("OMP_NUM_THREADS", Environment, "CPU_THREADS sets the compute threads"),
    ignored("DISABLE_EXLLAMA", Environment, NO_QUANTISED),
    ignored("EXLLAMA_VERSION", Environment, NO_QUANTISED),
    ignored("MAX_IMAGE_FETCH_SIZE", Environment, "images are never fetched"),
    read("AIP_HTTP_PORT", "wins over PORT; also a flag"),
    read("AIP_PREDICT_ROUTE", "asks for API_KEY, in TGI it does not; also a flag"),
    read("AIP_HEALTH_ROUTE", "also a flag"),
];
