//! Flags that say what is logged, and how: `serve` hands them on to the worker that it starts.

use std::ffi::OsString;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// What is logged, and how.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// Least severe messages that are logged to standard error: error, warn, info, debug, trace, or
    /// off; also per module, as in `info,millstream_router=debug`. Default: the variable RUST_LOG,
    /// or else info.
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL", value_parser = filter)]
    pub(crate) log_level: Option<String>,

    /// How messages are written: `text` for people; `json`, one object per line and without the
    /// greeting, for programs.
    #[arg(
        long,
        env = "LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT",
        ignore_case = true
    )]
    log_format: LogFormat,

    /// Log as JSON: the same as --log-format json, and wins over it. Default: off.
    #[arg(long, env = "JSON_OUTPUT", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", hide_default_value = true,
          value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    json_output: bool,

    /// Colour the messages: true or false. Default: only on a terminal, and never where the
    /// variable NO_COLOR is set.
    #[arg(long, env = "LOG_COLORIZE", value_name = "BOOL",
          value_parser = BoolishValueParser::new())]
    pub(crate) log_colorize: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Checks a filter, and keeps it as it was written.
fn filter(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    // A lone word that is no level would be taken for a module, and silence all others.
    let is_word = text.chars().all(|c| c.is_ascii_alphanumeric());
    if is_word && !LEVELS.contains(&text.to_ascii_lowercase().as_str()) {
        return Err(format!("expected {}", LEVELS.join(", ")));
    }
    EnvFilter::builder().parse(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

impl LogArgs {
    /// Whether programs read what is written.
    pub(crate) fn is_json(&self) -> bool {
        self.json_output || self.log_format == LogFormat::Json
    }

    /// The flags that make a worker log as its parent does.
    pub(crate) fn command_line(&self) -> Vec<OsString> {
        let format = if self.is_json() { "json" } else { "text" };
        let mut words =
            vec![format!("--log-format={format}"), format!("--json-output={}", self.is_json())];
        words.extend(self.log_level.as_ref().map(|level| format!("--log-level={level}")));
        words.extend(self.log_colorize.map(|colours| format!("--log-colorize={colours}")));
        words.into_iter().map(OsString::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_names_modules() {
        for text in ["info", "WARN", "off", "info,millstream=debug", "millstream_router::api"] {
            assert!(filter(text).is_ok(), "{text}");
        }
        for text in ["warning", "millstream", "a=b=c", "info,x=loud"] {
            assert!(filter(text).is_err(), "{text}");
        }
    }
}
