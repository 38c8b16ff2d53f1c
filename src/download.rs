//! `millstream download`: a name in, the directory of the files out, on standard output.

use std::io::{self, Write};

use anyhow::Context;

use crate::args::DownloadArgs;
use crate::hub::{Hub, Meter, Settings};
use crate::{logging, model};

/// Downloads what a server of the model would need.
pub(crate) fn run(args: &DownloadArgs) -> anyhow::Result<()> {
    logging::init(&args.log)?;
    let order = model::order(&args.model_id, args.revision.as_deref())?;
    let mut settings = Settings::from_env(None)?;
    settings.progress_bars &= !args.log.is_json();
    let hub = Hub::new(settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let fetched = runtime.block_on(hub.fetch(&order, &Meter::default()));
    // What still waits for the disk or the network has nobody left to wait for.
    runtime.shutdown_background();
    writeln!(io::stdout(), "{}", fetched?.display()).context("cannot print the directory")
}
