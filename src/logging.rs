//! Logs go to standard error; standard output belongs to the greeting and to reports.

use std::io::{self, IsTerminal};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::args::LogArgs;

/// Begins to log as asked; once per process.
pub(crate) fn init(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::builder();
    let filter = match (&args.log_level, set("RUST_LOG")) {
        (Some(level), _) => {
            filter.parse(level).with_context(|| format!("LOG_LEVEL ({level}) is no filter"))?
        }
        (None, Some(level)) => {
            filter.parse(&level).with_context(|| format!("RUST_LOG ({level}) is no filter"))?
        }
        (None, None) => EnvFilter::new("info"),
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if args.is_json() {
        logs.json().flatten_event(true).init();
    } else {
        let colours = args
            .log_colorize
            .unwrap_or_else(|| io::stderr().is_terminal() && set("NO_COLOR").is_none());
        logs.with_ansi(colours).init();
    }
    Ok(())
}

fn set(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty())
}
