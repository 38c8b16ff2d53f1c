//! Flags of `millstream download`.

use clap::Args;

use super::LogArgs;

/// Flags of `millstream download`.
#[derive(Debug, Args)]
pub(crate) struct DownloadArgs {
    /// Model on the Hugging Face hub, as ORG/NAME.
    #[arg(env = "MODEL_ID", value_name = "ORG/NAME")]
    pub(crate) model_id: String,

    /// Branch, tag or commit of the model. Default: its branch main.
    #[arg(long, env = "REVISION", value_name = "REVISION")]
    pub(crate) revision: Option<String>,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}
