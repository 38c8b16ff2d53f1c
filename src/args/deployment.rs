//! Flags about the place where a server runs.

use clap::Args;

use super::values::{header_text, route};

/// What a platform decides about the server that it runs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct DeploymentArgs {
    /// What answers of TGI's API say in their header x-compute-type. Default: `cpu`.
    #[arg(long, env = "COMPUTE_TYPE", value_name = "TEXT", value_parser = header_text)]
    pub(crate) compute_type: Option<String>,

    /// TCP port on which Vertex AI expects the server, which sets the variable; it wins over
    /// --port. Default: the value of --port.
    #[arg(long, env = "AIP_HTTP_PORT", value_name = "PORT")]
    pub(crate) aip_http_port: Option<u16>,

    /// Path under which Vertex AI sends its requests, which sets the variable; /vertex answers
    /// them too. Default: none.
    #[arg(long, env = "AIP_PREDICT_ROUTE", value_name = "PATH", value_parser = route)]
    pub(crate) aip_predict_route: Option<String>,

    /// Path under which Vertex AI asks whether the server can serve, which sets the variable;
    /// /health answers that too. Default: none.
    #[arg(long, env = "AIP_HEALTH_ROUTE", value_name = "PATH", value_parser = route)]
    pub(crate) aip_health_route: Option<String>,
}
