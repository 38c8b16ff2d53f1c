//! The life of a router: start the engine, take connections, drain, end.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use millstream_proto::WorkerInfo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::api::drain::Drain;
use crate::api::{App, cors, digest, listen, routes, unix_time};
use crate::engine::run::{self, WorkerLink};
use crate::engine::{EngineHandle, EngineState};
use crate::generate::Generator;
use crate::metrics::Metrics;
use crate::text::{EncoderPool, TextModel};
use crate::{OnReady, RouterConfig};

/// After the last stream has ended, connections may take their last bytes for so long.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why serving ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// A thread could not be started.
    #[error("cannot start the router's threads: {0}")]
    Start(#[from] io::Error),
    /// The engine is gone, by a bug; its panic is in the log.
    #[error("the engine has ended unexpectedly")]
    EngineEnded,
}

/// Serves on `listener` until `shutdown` resolves, then drains.
///
/// The port answers from the first moment; requests for text are refused until the worker behind
/// `link` is ready. After `shutdown`, new requests are refused, streams in flight may finish for
/// `graceful_termination_timeout`, and what is left then ends with an error event.
pub async fn serve(
    listener: TcpListener,
    text: Arc<TextModel>,
    link: WorkerLink,
    config: RouterConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RouterError> {
    let (engine, inbox) = EngineHandle::new(config.limits.max_concurrent_requests);
    let metrics = Arc::new(Metrics::new());
    let (generator, events) =
        Generator::new(engine, text.clone(), metrics.generation.clone(), config.client_timeout)?;
    let observed = metrics.engine.clone();
    let stats = Box::new(move |stats: &_| observed.observe(stats));
    // The thread ends by itself once the last handle on the engine is gone.
    run::spawn(config.engine.clone(), inbox, events, stats, link)?;
    serve_engine(listener, text, Front { generator, metrics }, config, shutdown).await
}

/// The engine, as HTTP sees it.
pub(crate) struct Front {
    pub(crate) generator: Generator,
    pub(crate) metrics: Arc<Metrics>,
}

/// [`serve`], on an engine that runs already.
pub(crate) async fn serve_engine(
    listener: TcpListener,
    text: Arc<TextModel>,
    front: Front,
    mut config: RouterConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RouterError> {
    let Front { generator, metrics } = front;
    let mut state = generator.engine().watch_state();
    let on_ready = config.on_ready.take();
    let grace = config.graceful_termination_timeout;
    let client_timeout = config.client_timeout;
    let origins = std::mem::take(&mut config.cors_allow_origin);
    let app = app(generator, metrics, text, config);
    let (drain, generator) = (app.drain.clone(), app.generator.clone());
    let (close, closed) = watch::channel(false);
    let routes = cors::allow(&origins, routes(app));
    let listening = listen::listen(listener, routes, client_timeout, closed);
    let watching = watch_engine(&mut state, on_ready);
    let ending = async {
        shutdown.await;
        info!("draining");
        drain.begin();
        if timeout(grace, drain.idle()).await.is_err() {
            warn!(grace_s = grace.as_secs(), "streams did not finish in time");
            generator.interrupt_all("the server is shutting down");
            let _ = timeout(FLUSH_TIMEOUT, drain.idle()).await;
        }
        close.send_replace(true);
        sleep(FLUSH_TIMEOUT).await;
    };
    tokio::select! {
        error = watching => Err(error),
        // Once closed, when the last connection has ended, or else when it had the time to.
        () = listening => Ok(()),
        () = ending => Ok(()),
    }
}

fn app(
    generator: Generator,
    metrics: Arc<Metrics>,
    text: Arc<TextModel>,
    config: RouterConfig,
) -> Arc<App> {
    let mut names = vec![config.model_name];
    names.extend(config.model_aliases);
    Arc::new(App {
        generator,
        metrics,
        encoders: EncoderPool::new(text.clone(), config.validation_workers),
        validation_workers: config.validation_workers,
        deployment: config.deployment,
        text,
        drain: Drain::new(),
        limits: config.limits,
        names,
        api_key: config.api_key.map(|key| digest(key.as_bytes())),
        client_timeout: config.client_timeout,
        keep_alive: config.keep_alive,
        created: unix_time(),
    })
}

/// Announces the first readiness; ends only when the engine does.
async fn watch_engine(
    state: &mut watch::Receiver<EngineState>,
    on_ready: Option<OnReady>,
) -> RouterError {
    let is_ready = |state: &EngineState| matches!(state, EngineState::Ready(_));
    let info: Arc<WorkerInfo> = match state.wait_for(is_ready).await {
        Ok(state) => state.info().expect("a ready engine knows its worker").clone(),
        Err(_) => return RouterError::EngineEnded,
    };
    if let Some(on_ready) = on_ready {
        on_ready(&info);
    }
    while state.changed().await.is_ok() {}
    RouterError::EngineEnded
}
