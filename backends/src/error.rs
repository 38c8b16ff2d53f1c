//! What can end a worker: the errors of loading a model and of serving it.

use std::io;
use std::path::PathBuf;

/// A model cannot be loaded. Every message says what to do if it is the user's to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file of the model cannot be read.
    #[error("cannot read `{file}`: {source}")]
    Read {
        /// The file, as named by the user or by the model.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file that every model has is not there.
    #[error("`{file}` is missing from {model}")]
    Missing {
        /// The file's name within the model.
        file: String,
        /// Where it was looked for.
        model: String,
    },
    /// A file's contents break a rule.
    #[error("`{file}`: {reason}")]
    Invalid {
        /// The file's name within the model.
        file: String,
        /// The rule and the value that breaks it.
        reason: String,
    },
    /// A key of the configuration would change the mathematics and is not understood.
    #[error("config.json: `{key}` is {value}, which is not supported")]
    Unsupported {
        /// The key, with its path if it is nested.
        key: String,
        /// Its value as JSON.
        value: String,
    },
    /// A tensor that the architecture needs is not in the checkpoint.
    #[error("tensor `{name}` is missing from the checkpoint")]
    MissingTensor {
        /// The tensor's name in the checkpoint.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}`: expected shape {expected:?}, checkpoint has {found:?}")]
    Shape {
        /// The tensor's name in the checkpoint.
        name: String,
        /// The shape that follows from config.json.
        expected: Vec<usize>,
        /// The shape in the checkpoint.
        found: Vec<usize>,
    },
    /// The cache is not made of such blocks.
    #[error("block_size: expected a multiple of {multiple_of} above 0, found {block_size}")]
    BlockSize {
        /// What was asked for.
        block_size: usize,
        /// The positions that the cache holds together.
        multiple_of: usize,
    },
    /// The cache would not hold a single sequence.
    #[error(
        "not enough memory for the KV cache: {free_mib} MiB free, one sequence of \
         {max_model_len} tokens needs {needed_mib} MiB; lower --max-total-tokens or raise \
         --kv-cache-memory"
    )]
    CacheMemory {
        /// Memory that the cache may take, in MiB.
        free_mib: u64,
        /// The longest sequence, in tokens.
        max_model_len: u32,
        /// What that sequence needs, in MiB.
        needed_mib: u64,
    },
    /// A GPU has no room for the weights, or for the activations of the largest step.
    #[error(
        "the GPU is full: {requested_mib} MiB were asked for, {free_mib} MiB of {total_mib} MiB \
         are free; end what else uses it, lower --max-batch-prefill-tokens or --max-batch-size, or \
         take a smaller model"
    )]
    DeviceMemory {
        /// What was asked for.
        requested_mib: u64,
        /// What nobody uses.
        free_mib: u64,
        /// All of its memory.
        total_mib: u64,
    },
    /// The tensor library or a kernel refused.
    #[error("{0}")]
    Device(String),
}

/// A worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The socket cannot be bound.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something that is not a stale socket stands where the socket should be.
    #[error("cannot listen on {}: {reason}", path.display())]
    Occupied {
        /// The socket's path.
        path: PathBuf,
        /// What stands there.
        reason: &'static str,
    },
    /// The thread that runs the model panicked, or could not be started.
    #[error("the engine thread ended: {0}")]
    Engine(String),
    /// The server of the socket failed.
    #[error("the gRPC server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}
