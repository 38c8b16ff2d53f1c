//! `millstream serve`: the port, the worker, the router, and who ends whom.
//!
//! The port is bound before anything else, so a taken one costs nothing. A model of the hub is
//! downloaded next, while the port answers how far that is. Then the worker loads its weights
//! while the tokenizer is loaded here. Whichever of router and worker cannot go on ends the other.

use std::fs::Permissions;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use millstream_backends::ModelSource;
use millstream_proto::WorkerInfo;
use millstream_router::text::{TextModel, TextOverrides};
use millstream_router::{Deployment, EngineConfig, RequestLimits, RouterConfig, WorkerLink};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::args::{
    Device, GenerationConfig, LoadFormat, ModelArgs, ServeArgs, ServerArgs, listen_address,
};
use crate::banner::Banner;
use crate::launcher::{self, KillSwitch, RestartPolicy, WorkerCommand};
use crate::{demo, device, environment, hub, logging, model, signals};

/// Serves until a signal asks for the end, or nothing can be served.
pub(crate) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    logging::init(&args.log)?;
    args.tgi.warn();
    if std::env::var_os("API_KEY").is_some() && args.server.api_key.is_none() {
        warn!("API_KEY is set to nothing: requests are open to all that reach the port");
    }
    if args.env {
        environment::tell(args.log.is_json(), args.huggingface_hub_cache.as_deref());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(serve(args, started));
    // What still computes, an encoding for example, has nobody left to compute for.
    runtime.shutdown_background();
    served
}

async fn serve(args: ServeArgs, started: Instant) -> anyhow::Result<()> {
    let mut shutdown = pin!(signals::shutdown_requested()?);
    let listener = bind(&args.server).await?;
    let address = listener.local_addr()?;
    let Some((listener, local)) = locate(&args, listener, shutdown.as_mut()).await? else {
        return Ok(());
    };
    let source = match local.mock {
        Some(_) => None,
        None => Some(model::source(&local)?),
    };

    let directory = socket_directory(args.server.shard_uds_path.as_deref())?;
    let socket = directory.path().join("worker.sock");
    // Looking for a GPU takes a moment, in which the port answers.
    let command = tokio::task::block_in_place(|| worker_command(&args, &local, socket))?;
    let kill = KillSwitch::default();
    let link = WorkerLink {
        socket: command.socket.clone(),
        kill: Arc::new({
            let kill = kill.clone();
            move || kill.kill()
        }),
    };
    let (stop_worker, worker_stopped) = oneshot::channel::<()>();
    let mut worker = tokio::spawn(async move {
        // A sender that is gone means the end as well.
        let stopped = async { drop(worker_stopped.await) };
        launcher::supervise(&command, RestartPolicy::default(), &kill, stopped).await
    });

    let allows_no_tokenizer = args.model.load_format == LoadFormat::Dummy;
    let overrides = text_overrides(&args)?;
    let text =
        tokio::task::spawn_blocking(move || load_text(source, overrides, allows_no_tokenizer));
    let generation_config = args.generation_config;
    let mut config = router_config(args, address, started);
    config.deployment.model_sha = model::commit(&local);
    let router = async {
        let text = text.await.context("loading the tokenizer failed")??;
        let text = match generation_config {
            GenerationConfig::Auto => text,
            GenerationConfig::None => text.without_recommendations(),
        };
        Ok::<(), anyhow::Error>(
            millstream_router::serve(listener, Arc::new(text), link, config, shutdown).await?,
        )
    };
    tokio::select! {
        served = router => {
            drop(stop_worker);
            worker.await.context("the launcher failed")??;
            served?;
        }
        ended = &mut worker => ended.context("the launcher failed")??,
    }
    info!("ended");
    Ok(())
}

/// Sees to it that the model is in a directory, and says in which; `None` if the end was asked
/// for meanwhile.
async fn locate(
    args: &ServeArgs,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<Option<(TcpListener, ModelArgs)>> {
    let Some(order) = model::download(&args.model, args.revision.as_deref())? else {
        if let (Some(revision), Some(_)) = (&args.revision, &args.model.model_id) {
            warn!(revision, "the model is a local directory, --revision means nothing");
        }
        return Ok(Some((listener, args.model.clone())));
    };
    let mut settings = hub::Settings::from_env(args.huggingface_hub_cache.as_deref())?;
    settings.progress_bars &= !args.log.is_json();
    let hub = hub::Hub::new(settings)?;
    info!(address = %listener.local_addr()?, model = %order.repo, "listening, not ready yet");
    let meter = hub::Meter::default();
    let reason = Arc::new({
        let meter = meter.clone();
        move || meter.to_string()
    });
    let fetching = async {
        tokio::select! {
            fetched = hub.fetch(&order, &meter) => Some(fetched),
            () = shutdown => None,
        }
    };
    let client_timeout = args.timeouts.client_timeout;
    let (listener, fetched) =
        millstream_router::while_starting(listener, client_timeout, reason, fetching).await?;
    let Some(directory) = fetched.transpose()? else {
        info!("ended");
        return Ok(None);
    };
    Ok(Some((listener, model::downloaded(&args.model, &directory)?)))
}

async fn bind(args: &ServerArgs) -> anyhow::Result<TcpListener> {
    let default = args.default_hostname.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let ip = match args.hostname.as_deref() {
        None => default,
        Some(hostname) => listen_address(hostname).unwrap_or_else(|| {
            if args.default_hostname.is_none() {
                warn!(
                    hostname,
                    "HOSTNAME is no address, listening on 127.0.0.1 alone; --hostname 0.0.0.0 is \
                     everywhere"
                );
            }
            default
        }),
    };
    let address = SocketAddr::new(ip, args.port);
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            _ if args.port == 0 => "",
            io::ErrorKind::PermissionDenied if args.port < 1024 => {
                "; ports below 1024 may be root's alone here, choose another with --port"
            }
            _ => "; choose another with --port",
        };
        anyhow!("cannot listen on {address}{hint}: {error}")
    })
}

/// A directory that only this user may enter; it is removed with everything in it.
fn socket_directory(prefix: Option<&Path>) -> anyhow::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.permissions(Permissions::from_mode(0o700));
    let Some(prefix) = prefix else {
        let made = builder.prefix("millstream-").tempdir();
        return made.context("cannot create a directory for the worker's socket");
    };
    let path = std::path::absolute(prefix).context("SHARD_UDS_PATH is no path")?;
    let name = path.file_name().unwrap_or_default();
    let parent = path.parent().unwrap_or(&path);
    let made = builder.prefix(name).tempdir_in(parent);
    made.with_context(|| {
        format!("cannot create a directory at SHARD_UDS_PATH ({})", path.display())
    })
}

/// This executable again, as a worker of the `local` model.
fn worker_command(
    args: &ServeArgs,
    local: &ModelArgs,
    socket: std::path::PathBuf,
) -> anyhow::Result<WorkerCommand> {
    let mut words = vec!["worker".into(), "--follow-stdin".into(), "--listen".into()];
    words.push(socket.clone().into_os_string());
    words.extend(local.command_line());
    words.extend(args.log.command_line());
    Ok(WorkerCommand {
        program: match local.mock {
            Some(_) => device::program(Device::Cpu)?,
            None => device::program(local.device)?,
        },
        args: words,
        socket,
        start_timeout: args.timeouts.worker_start_timeout,
    })
}

/// What the operator says in the place of the model's files for text.
fn text_overrides(args: &ServeArgs) -> anyhow::Result<TextOverrides> {
    let tokenizer_config = match &args.tokenizer_config_path {
        None => None,
        Some(path) => {
            let name = format!("TOKENIZER_CONFIG_PATH ({})", path.display());
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
            Some((name, bytes))
        }
    };
    let chat_template_kwargs = args.chat_template_kwargs.clone().unwrap_or_default();
    Ok(TextOverrides {
        tokenizer_config,
        chat_template_kwargs,
        tool_format: args.tool_call_parser.format(),
        reasoning_format: args.reasoning_parser.format(),
    })
}

/// The tokenizer's side of the model; without a model, bytes and numbers stand for tokens.
fn load_text(
    source: Option<ModelSource>,
    overrides: TextOverrides,
    allows_no_tokenizer: bool,
) -> anyhow::Result<TextModel> {
    let Some(source) = source else { return Ok(TextModel::bytes_fallback()) };
    let read = |name: &str| source.read(name).map(|file| file.map(|bytes| bytes.into_owned()));
    if allows_no_tokenizer && read("tokenizer.json")?.is_none() {
        warn!("the model has no tokenizer.json, texts are read and written as bytes");
        return Ok(TextModel::bytes_fallback());
    }
    TextModel::load_with(&read, overrides)
        .with_context(|| format!("cannot read the texts' side of {}", source.name()))
}

fn router_config(args: ServeArgs, address: SocketAddr, started: Instant) -> RouterConfig {
    let model_name = args.served_model_name.unwrap_or_else(|| model::name(&args.model));
    let limits = RequestLimits {
        max_concurrent_requests: args.limits.max_concurrent_requests as usize,
        max_input_tokens: args.limits.max_input_tokens.map(|tokens| tokens as usize),
        max_total_tokens: args.model.max_total_tokens.map(|tokens| tokens as usize),
        max_stop_sequences: args.limits.max_stop_sequences as usize,
        max_client_batch_size: args.limits.max_client_batch_size as usize,
        max_choices: args.limits.max_best_of as usize,
        max_top_logprobs: args.limits.max_top_n_tokens as usize,
        payload_limit: usize::try_from(args.limits.payload_limit).unwrap_or(usize::MAX),
    };
    let engine = EngineConfig {
        max_prefill_tokens: args.model.max_batch_prefill_tokens,
        max_batch_size: args.model.max_batch_size,
        prefix_caching: args.prefix_caching,
        resume_timeout: args.timeouts.resume_timeout,
        step_timeout: args.timeouts.step_timeout,
    };
    let greeting = Greeting {
        model_name: model_name.clone(),
        started,
        address,
        needs_key: args.server.api_key.is_some(),
        question: question(&args.model),
        on_stdout: !args.log.is_json(),
    };
    let deployment = Deployment {
        compute_type: args.deployment.compute_type,
        predict_route: args.deployment.aip_predict_route,
        health_route: args.deployment.aip_health_route,
        build_sha: Some(env!("MILLSTREAM_COMMIT").to_owned()).filter(|sha| sha != "unknown"),
        ..Deployment::default()
    };
    RouterConfig {
        deployment,
        api_key: args.server.api_key.map(|key| key.0),
        cors_allow_origin: args.server.cors_allow_origin,
        limits,
        validation_workers: args.validation_workers as usize,
        graceful_termination_timeout: args.timeouts.graceful_termination_timeout,
        client_timeout: args.timeouts.client_timeout,
        on_ready: Some(Box::new(move |info| greeting.say(info))),
        ..RouterConfig::new(model_name, engine)
    }
}

/// Something that the model can answer.
fn question(args: &ModelArgs) -> &'static str {
    if args.model_id.is_none() { demo::QUESTION } else { "Who are you, and what can you do?" }
}

/// What is said once, when the first worker is ready.
struct Greeting {
    model_name: String,
    /// When this process began.
    started: Instant,
    address: SocketAddr,
    needs_key: bool,
    question: &'static str,
    on_stdout: bool,
}

impl Greeting {
    fn say(&self, info: &WorkerInfo) {
        let Greeting { model_name, started, address, needs_key, question, on_stdout } = self;
        // In the unit and to the digit that the worker tells its own stages in.
        let seconds = started.elapsed().as_millis() as f64 / 1e3;
        info!(model = model_name, %address, max_model_len = info.max_model_len, seconds, "ready");
        if *on_stdout {
            let (address, needs_key) = (*address, *needs_key);
            let banner = Banner { model_name, info, address, needs_key, question };
            // Nobody has to read it.
            let _ = write!(io::stdout(), "{banner}").and_then(|()| io::stdout().flush());
        }
    }
}
