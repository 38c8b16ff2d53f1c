//! The command line: what can be asked of the executable, and nothing about how it is done.
//!
//! Flags carry the names that Text Generation Inference gave them, where it has one, and each is
//! also an environment variable, so that its containers start unchanged. Values are parsed here
//! and only here: what leaves this module is typed.

mod bench;
mod download;
mod serve;
mod values;
mod worker;

pub(crate) use bench::{BenchArgs, EndpointArg};
pub(crate) use download::DownloadArgs;
pub(crate) use serve::{GenerationConfig, ServeArgs};
pub(crate) use values::listen_address;
pub(crate) use worker::{Dtype, LoadFormat, LogArgs, ModelArgs, WorkerArgs};

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

/// High-throughput server for large language models.
///
/// Without a subcommand, `serve` is meant: `millstream --port 8080` serves on port 8080.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the executable can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model over the OpenAI-compatible HTTP API (the default).
    Serve(Box<ServeArgs>),
    /// Run a model for a router; `serve` starts this itself.
    Worker(Box<WorkerArgs>),
    /// Download a model from the Hugging Face hub and print the directory of its files.
    ///
    /// Only what is needed to serve it: its description and its weights as safetensors. The cache
    /// is the one of Python's huggingface_hub, and so are the variables that set it: HF_HOME,
    /// HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and more.
    #[command(alias = "download-weights")]
    Download(Box<DownloadArgs>),
    /// Put load on a running server and report its throughput and latencies.
    Bench(Box<BenchArgs>),
}

/// Parses the command line of this process; the error is one line for the user.
///
/// Help and version are printed, and end the process, here.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    match Cli::try_parse_from(with_default_command(args.into_iter().collect())) {
        Ok(cli) => Ok(cli.command),
        Err(error) if is_help(error.kind()) => error.exit(),
        Err(error) => Err(one_line(&error.render().to_string())),
    }
}

fn is_help(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
}

/// Inserts `serve` where the first argument is a flag of it, or nothing.
fn with_default_command(mut args: Vec<OsString>) -> Vec<OsString> {
    const OWN_FLAGS: [&str; 4] = ["-h", "--help", "-V", "--version"];
    let names_command = args
        .get(1)
        .and_then(|first| first.to_str())
        .is_some_and(|first| !first.starts_with('-') || OWN_FLAGS.contains(&first));
    if !names_command {
        args.insert(1.min(args.len()), "serve".into());
    }
    args
}

/// Folds the parser's message, without the usage, into one line.
fn one_line(rendered: &str) -> String {
    let mut line = String::new();
    let parts = rendered.lines().map(str::trim).filter(|part| {
        !part.is_empty() && !part.starts_with("Usage:") && !part.starts_with("For more information")
    });
    for part in parts {
        match line.chars().last() {
            None => {}
            Some(':') => line.push(' '),
            Some(_) => line.push_str("; "),
        }
        line.push_str(part);
    }
    line.strip_prefix("error: ").map(str::to_owned).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::time::Duration;

    fn parse_words(words: &str) -> Result<Command, String> {
        let words = std::iter::once("millstream").chain(words.split_whitespace());
        parse(words.map(OsString::from))
    }

    fn serve(words: &str) -> ServeArgs {
        match parse_words(words) {
            Ok(Command::Serve(args)) => *args,
            other => panic!("`{words}` is not serve: {other:?}"),
        }
    }

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_meant_where_no_subcommand_stands() {
        assert_eq!(serve("").port, 3000);
        assert_eq!(serve("--port 8080").port, 8080);
        assert_eq!(serve("-p 8081").port, 8081);
        assert_eq!(serve("serve --port 8082").port, 8082);
        assert!(matches!(parse_words("bench"), Ok(Command::Bench(_))));
        for words in ["download a/b --revision v1", "download-weights a/b"] {
            assert!(matches!(parse_words(words), Ok(Command::Download(_))), "{words}");
        }
    }

    #[test]
    fn values_are_typed_with_their_units() {
        let args = serve("--kv-cache-memory 2GiB --resume-timeout 1.5 --prefix-caching false");
        assert_eq!(args.model.kv_cache_memory, Some(2 << 30));
        assert_eq!(args.timeouts.resume_timeout, Duration::from_millis(1500));
        assert!(!args.prefix_caching);
        assert_eq!(args.generation_config, GenerationConfig::Auto);
        let args = serve("--generation-config vllm");
        assert_eq!(args.generation_config, GenerationConfig::None);
    }

    #[test]
    fn a_wrong_command_line_is_told_in_one_line_that_names_what_is_wrong() {
        let cases = [
            ("--prot 1", "--prot"),
            ("--port 70000", "70000"),
            ("--port", "--port"),
            ("fly", "fly"),
            ("worker", "--listen"),
            ("--kv-cache-memory 3Gallons", "3Gallons"),
            ("--device cuda", "cuda"),
            ("--dtype int3", "int3"),
            ("bench --url ftp://x", "ftp://x"),
        ];
        for (words, named) in cases {
            let error = parse_words(words).expect_err(words);
            assert!(!error.contains('\n') && error.contains(named), "`{words}`: {error}");
            assert!(!error.starts_with("error"), "`{words}`: {error}");
        }
    }

    #[test]
    fn every_flag_states_its_effect_and_its_default() {
        for command in Cli::command().get_subcommands() {
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let name = format!("{} --{}", command.get_name(), arg.get_id());
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.len() > 20, "{name} has no help");
                let states_default = !arg.get_default_values().is_empty()
                    || arg.is_required_set()
                    || !arg.get_action().takes_values()
                    || help.to_lowercase().contains("default");
                assert!(states_default, "{name} states no default: {help}");
            }
        }
    }

    #[test]
    fn every_flag_of_serve_and_worker_that_tgi_has_is_also_an_environment_variable() {
        for command in Cli::command().get_subcommands().filter(|c| c.get_name() != "bench") {
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let name = arg.get_id().as_str();
                if matches!(name, "listen" | "follow_stdin" | "help" | "version") {
                    continue;
                }
                let variable = arg.get_env().and_then(|env| env.to_str()).map(str::to_owned);
                assert_eq!(variable, Some(name.to_uppercase()), "{name}");
            }
        }
    }

    #[test]
    fn the_api_key_never_shows_in_debug_output() {
        let args = serve("--api-key s3cret");
        assert_eq!(args.api_key.as_ref().map(|key| key.0.as_str()), Some("s3cret"));
        assert!(!format!("{args:?}").contains("s3cret"));
    }

    #[test]
    fn a_worker_gets_back_what_serve_was_given() {
        let args = serve(
            "--model-id /models/tiny --dtype bf16 --load-format dummy --kv-cache-memory 64MiB \
             --max-batch-size 8 --max-batch-prefill-tokens 512 --max-total-tokens 1024 \
             --log-level debug --json-output",
        );
        let mut words: Vec<OsString> = vec!["millstream".into(), "worker".into()];
        words.extend(args.model.command_line());
        words.extend(args.log.command_line());
        words.extend(["--listen".into(), "/tmp/s".into()]);
        let Ok(Command::Worker(worker)) = parse(words) else { panic!("not a worker") };
        assert_eq!(format!("{:?}", worker.model), format!("{:?}", args.model));
        assert_eq!(format!("{:?}", worker.log), format!("{:?}", args.log));
    }
}
