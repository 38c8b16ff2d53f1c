//! The command line: what can be asked of the executable, and nothing about how it is done.
//!
//! Flags carry the names that Text Generation Inference gave them, where it has one, and each is
//! also an environment variable, so that its containers start unchanged: a flag beats its
//! variable, and an empty variable is as good as none. What TGI takes and we do not is in [`tgi`].
//! Values are parsed here and only here: what leaves this module is typed.

mod bench;
mod deployment;
mod download;
mod log;
mod serve;
pub(crate) mod tgi;
mod tools;
mod values;
mod worker;

pub(crate) use bench::{BenchArgs, EndpointArg};
pub(crate) use deployment::DeploymentArgs;
pub(crate) use download::DownloadArgs;
pub(crate) use log::LogArgs;
pub(crate) use serve::{GenerationConfig, ServeArgs, ServerArgs};
pub(crate) use tools::{EnvArgs, HealthArgs};
pub(crate) use values::listen_address;
pub(crate) use worker::{Device, Dtype, LoadFormat, ModelArgs, Quantize, WorkerArgs};

use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

/// High-throughput server for large language models.
///
/// Without a subcommand, `serve` is meant: `millstream --port 8080` serves on port 8080.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, max_term_width = 80)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the executable can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model over the OpenAI-compatible HTTP API (the default).
    ///
    /// Each flag is also an environment variable: --max-total-tokens is MAX_TOTAL_TOKENS. A flag
    /// beats its variable, and an empty variable is as good as none.
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
    /// Print what a bug report needs: build, machine, limits, variables; no secrets.
    Env(EnvArgs),
    /// Ask a running server whether it can serve; the exit code is the answer.
    Health(HealthArgs),
}

/// What `millstream-cuda` can do.
#[cfg(feature = "cuda")]
#[derive(Debug, Subcommand)]
pub(crate) enum CudaCommand {
    /// Run a model on the GPU for a router; `millstream serve` starts this itself.
    Worker(Box<WorkerArgs>),
    /// Say which GPU a worker would run on, or why there is none.
    Probe,
}

/// The worker of Millstream that computes on a GPU.
///
/// `millstream serve` starts it where it finds a GPU.
#[cfg(feature = "cuda")]
#[derive(Debug, Parser)]
#[command(name = "millstream-cuda", version, max_term_width = 80)]
struct CudaCli {
    /// What to do.
    #[command(subcommand)]
    command: CudaCommand,
}

/// Parses the command line of `millstream-cuda`; the error is one line for the user.
///
/// Help and version are printed, and end the process, here.
#[cfg(feature = "cuda")]
pub(crate) fn parse_cuda(args: impl IntoIterator<Item = OsString>) -> Result<CudaCommand, String> {
    let mut definition = definition::<CudaCli>();
    let parsed = definition
        .try_get_matches_from_mut(args)
        .and_then(|matches| CudaCli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => Ok(cli.command),
        Err(error) if is_help(error.kind()) => error.exit(),
        Err(error) => Err(one_line(&error.render().to_string())),
    }
}

/// Parses the command line of this process; the error is one line for the user.
///
/// Help and version are printed, and end the process, here.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let args = with_default_command(args.into_iter().collect());
    let mut definition = definition::<Cli>();
    let parsed = definition.try_get_matches_from_mut(&args).and_then(|matches| {
        let command =
            Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut definition))?.command;
        Ok((matches, command))
    });
    let (matches, mut command) = match parsed {
        Ok(parsed) => parsed,
        Err(error) if is_help(error.kind()) => error.exit(),
        Err(error) => {
            let line = one_line(&error.render().to_string());
            return Err(match guilty_variable(&error, &definition, &args) {
                Some(variable) => format!("{variable}: {line}"),
                None => line,
            });
        }
    };
    if let Command::Serve(args) = &mut command {
        check_hostname(&matches)?;
        args.resolve()?;
    }
    Ok(command)
}

/// Every variable that is also a flag.
pub(crate) fn variables() -> Vec<String> {
    let commands = Cli::command();
    let args = commands.get_subcommands().flat_map(clap::Command::get_arguments);
    args.filter_map(|arg| arg.get_env()?.to_str().map(str::to_owned)).collect()
}

/// The command line as the environment of this process makes it.
fn definition<C: CommandFactory>() -> clap::Command {
    // The rule that names the variables is told once, and no value of one is ever shown.
    let unless_empty = |arg: Arg| {
        let is_empty = arg.get_env().is_some_and(is_empty_variable);
        let arg = arg.hide_env(true);
        if is_empty { arg.env(Resettable::Reset) } else { arg }
    };
    C::command().mut_subcommands(|command| command.mut_args(unless_empty))
}

/// Compose files and manifests set variables to nothing where they mean none.
fn is_empty_variable(name: &OsStr) -> bool {
    let value = std::env::var_os(name);
    value.is_some_and(|value| value.to_str().is_some_and(|value| value.trim().is_empty()))
}

fn is_help(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
}

/// The variable that a wrong value came from; none if a flag gave it.
fn guilty_variable(
    error: &clap::Error,
    definition: &clap::Command,
    args: &[OsString],
) -> Option<String> {
    let Some(ContextValue::String(guilty)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let command = definition.find_subcommand(args.get(1)?)?;
    let arg = command.get_arguments().find(|arg| arg.to_string() == *guilty)?;
    let names = |word: &OsString| {
        let word = word.to_string_lossy();
        let long = arg.get_long().is_some_and(|long| {
            let flag = word.split_once('=').map_or(&*word, |(flag, _)| flag);
            flag.strip_prefix("--") == Some(long)
        });
        let short = arg.get_short().is_some_and(|short| {
            !word.starts_with("--") && word.starts_with('-') && word.contains(short)
        });
        long || short
    };
    if args.iter().any(names) {
        return None;
    }
    arg.get_env()?.to_str().map(str::to_owned)
}

/// The variable may hold the name of a machine; who writes the flag means an address.
fn check_hostname(matches: &ArgMatches) -> Result<(), String> {
    let Some(serve) = matches.subcommand_matches("serve") else { return Ok(()) };
    match serve.get_one::<String>("hostname") {
        Some(hostname)
            if serve.value_source("hostname") == Some(ValueSource::CommandLine)
                && listen_address(hostname).is_none() =>
        {
            Err(format!("--hostname ({hostname}) must be an IP address or `localhost`"))
        }
        _ => Ok(()),
    }
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
    use std::time::Duration;

    use millstream_router::text::{FormatChoice, ReasoningFormat, ToolFormat};

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
        assert_eq!(serve("").server.port, 3000);
        assert_eq!(serve("--port 8080").server.port, 8080);
        assert_eq!(serve("-p 8081").server.port, 8081);
        assert_eq!(serve("serve --port 8082").server.port, 8082);
        assert_eq!(serve("--port 80 --aip-http-port 8083").server.port, 8083);
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
    fn formats_go_by_the_names_of_vllm() {
        let tools = |words: &str| serve(words).tool_call_parser.format();
        for (name, format) in [
            ("hermes", ToolFormat::Hermes),
            ("qwen3_coder", ToolFormat::Qwen3Coder),
            ("llama3_json", ToolFormat::Llama3Json),
            ("mistral", ToolFormat::Mistral),
            ("openai", ToolFormat::Harmony),
        ] {
            let words = format!("--tool-call-parser {name}");
            assert_eq!(tools(&words), FormatChoice::Given(format), "{name}");
        }
        assert_eq!(tools(""), FormatChoice::Template);
        assert_eq!(tools("--tool-call-parser none"), FormatChoice::None);
        let reasoning = |words: &str| serve(words).reasoning_parser.format();
        for (name, format) in [
            ("deepseek_r1", ReasoningFormat::Think),
            ("qwen3", ReasoningFormat::Think),
            ("openai", ReasoningFormat::Harmony),
        ] {
            let words = format!("--reasoning-parser {name}");
            assert_eq!(reasoning(&words), FormatChoice::Given(format), "{name}");
        }
        assert_eq!(reasoning(""), FormatChoice::Template);
        assert_eq!(reasoning("--reasoning-parser none"), FormatChoice::None);
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
            ("--device tpu", "auto, cpu or cuda"),
            ("--cuda-memory-fraction 1.5", "1.5"),
            ("--dtype int3", "int3"),
            ("bench --url ftp://x", "ftp://x"),
            ("--hostname my-machine", "--hostname (my-machine)"),
            ("--cors-allow-origin chat.example.com", "https://chat.example.com"),
            ("--log-level loud", "loud"),
            ("--json-output=perhaps", "perhaps"),
            ("--aip-predict-route predict", "must begin with /"),
            ("--quantize awq", "'awq' for '--quantize <METHOD>': weights that are quantised"),
            ("--quantize eetq", "'eetq' for '--quantize <METHOD>': it is made for GPUs; int8"),
            ("--quantize int3", "expected int8 or int4"),
            ("--num-shard 2", "--num-shard (2)"),
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
            let is_own = |arg: &&Arg| arg.get_help_heading() != Some(tgi::HEADING);
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()).filter(is_own) {
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
        let has_variables =
            |command: &&clap::Command| matches!(command.get_name(), "serve" | "worker");
        for command in Cli::command().get_subcommands().filter(has_variables) {
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let name = arg.get_id().as_str();
                if matches!(name, "listen" | "follow_stdin" | "env" | "help" | "version") {
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
        assert_eq!(args.server.api_key.as_ref().map(|key| key.0.as_str()), Some("s3cret"));
        assert!(!format!("{args:?}").contains("s3cret"));
    }

    #[test]
    fn a_worker_gets_back_what_serve_was_given() {
        let args = serve(
            "--model-id /models/tiny --dtype bf16 --quantize INT4 --load-format dummy \
             --kv-cache-memory 64MiB --max-batch-size 8 --max-batch-prefill-tokens 512 --max-total-tokens 1024 \
             --log-level debug --log-format json --log-colorize off",
        );
        let mut words: Vec<OsString> = vec!["millstream".into(), "worker".into()];
        words.extend(args.model.command_line());
        words.extend(args.log.command_line());
        words.extend(["--listen".into(), "/tmp/s".into()]);
        let Ok(Command::Worker(worker)) = parse(words) else { panic!("not a worker") };
        assert_eq!(format!("{:?}", worker.model), format!("{:?}", args.model));
        assert_eq!(worker.log.log_level, args.log.log_level);
        assert_eq!(worker.log.log_colorize, args.log.log_colorize);
        assert!(worker.log.is_json() && args.log.is_json());
    }
    #[test]
    fn help_fits_80_columns_and_its_groups_stand_in_order() {
        let mut definition = definition::<Cli>();
        definition.build();
        for command in definition.get_subcommands_mut() {
            for help in [command.render_help(), command.render_long_help()] {
                let help = help.to_string();
                let long = help.lines().find(|line| line.chars().count() > 80);
                assert_eq!(long, None, "{}", command.get_name());
            }
        }
        let serve = definition.find_subcommand_mut("serve").unwrap();
        let (short, long) = (serve.render_help().to_string(), serve.render_long_help().to_string());
        let headings = |help: &str| -> Vec<String> {
            let is_heading = |line: &&str| line.ends_with(':') && !line.starts_with(' ');
            help.lines().filter(is_heading).map(|line| line.trim_end_matches(':').into()).collect()
        };
        let own =
            ["Options", "Model", "Server", "Limits", "Scheduling", "Sampling defaults", "Logging"];
        assert_eq!(headings(&short), own);
        assert_eq!(headings(&long), [&own[..], &[tgi::HEADING]].concat());
        assert!(long.contains("MAX_TOTAL_TOKENS"), "the variables are not named");
    }

    #[test]
    fn a_switch_may_stand_alone_or_say_what_it_is() {
        for (words, expected) in [
            ("", false),
            ("--json-output", true),
            ("--json-output=off", false),
            ("--json-output=1 --port 1", true),
            ("--log-format JSON", true),
        ] {
            assert_eq!(serve(words).log.is_json(), expected, "{words}");
        }
    }
}
