//! What the operating system asks of `serve`: to finish, and then, if asked again, to end at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

/// What a shell reports for a process that ended by Ctrl-C.
const EXIT_INTERRUPTED: i32 = 130;

/// Resolves at the first SIGTERM or SIGINT. A SIGINT after that ends the process at once.
///
/// The signals are taken over when this is called, not when the future is polled.
pub(crate) fn shutdown_requested() -> io::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM, finishing"),
            _ = interrupt.recv() => info!("SIGINT, finishing; once more ends at once"),
        }
        tokio::spawn(async move {
            interrupt.recv().await;
            // Closes the worker's standard input, which ends it too.
            std::process::exit(EXIT_INTERRUPTED);
        });
    })
}
