//! Flags of the small tools: `env` and `health`.

use clap::Args;

use super::values::http_url;

/// Flags of `millstream env`.
#[derive(Clone, Debug, Args)]
pub(crate) struct EnvArgs {
    /// Print JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `millstream health`.
#[derive(Clone, Debug, Args)]
pub(crate) struct HealthArgs {
    /// Server to ask, as http://HOST:PORT. Default: the one on this machine, under the variables
    /// HOSTNAME and PORT (or AIP_HTTP_PORT).
    #[arg(long, value_name = "URL", value_parser = http_url)]
    pub(crate) url: Option<String>,
}
