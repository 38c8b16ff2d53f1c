//! The table against the launcher, the command line and the page that tells users.

use std::collections::BTreeSet;

use super::*;
use crate::args::Cli;
use clap::{CommandFactory, Parser};

/// The fields of `struct Args` in TGI's `launcher/src/main.rs` (3.3.7), in its order, without
/// `env`, which has no variable.
const LAUNCHER: &str = "model_id revision validation_workers sharded num_shard quantize speculate \
    dtype kv_cache_dtype trust_remote_code max_concurrent_requests max_best_of max_stop_sequences \
    max_top_n_tokens max_input_tokens max_input_length max_total_tokens waiting_served_ratio \
    max_batch_prefill_tokens max_batch_total_tokens max_waiting_tokens max_batch_size cuda_graphs \
    hostname port prometheus_port shard_uds_path master_addr master_port huggingface_hub_cache \
    weights_cache_override disable_custom_kernels cuda_memory_fraction rope_scaling rope_factor \
    json_output otlp_endpoint otlp_service_name cors_allow_origin api_key watermark_gamma \
    watermark_delta ngrok ngrok_authtoken ngrok_edge tokenizer_config_path \
    disable_grammar_support max_client_batch_size lora_adapters usage_stats payload_limit \
    enable_prefill_logprobs graceful_termination_timeout";

/// What the launcher, the router and the server read from the environment alone: `env::var` in
/// `launcher` and `router`, `os.getenv` and `os.environ` in `server`, but for what TGI sets for
/// its own children and what only AMD's libraries read.
const ENVIRONMENT: &str = "HF_TOKEN HUGGING_FACE_HUB_TOKEN HF_API_TOKEN HF_HOME HF_HUB_OFFLINE \
    HF_HUB_ENABLE_HF_TRANSFER HF_HUB_USER_AGENT_ORIGIN LOG_LEVEL LOG_FORMAT LOG_COLORIZE \
    PREFIX_CACHING PREFILL_CHUNKING ATTENTION USE_FLASH_ATTENTION TGI_WIGGLE_ROOM COMPUTE_TYPE \
    CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES ZE_AFFINITY_MASK XPU_MEMORY_FRACTION \
    OMP_NUM_THREADS DISABLE_EXLLAMA EXLLAMA_VERSION MAX_IMAGE_FETCH_SIZE AIP_HTTP_PORT \
    AIP_PREDICT_ROUTE AIP_HEALTH_ROUTE";

const PAGE: &str = "deploy/from-tgi.md";

#[derive(Parser)]
struct Only {
    #[command(flatten)]
    tgi: TgiArgs,
}

fn given(words: &str) -> TgiArgs {
    Only::parse_from(["x"].into_iter().chain(words.split_whitespace())).tgi
}

#[test]
fn every_variable_of_tgi_has_one_row_and_no_other_has() {
    let launcher = LAUNCHER.split_whitespace().map(str::to_uppercase);
    let all: Vec<String> =
        launcher.chain(ENVIRONMENT.split_whitespace().map(str::to_owned)).collect();
    let rows: Vec<&str> = TABLE.iter().map(|variable| variable.name).collect();
    assert_eq!(rows, all);
    assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), rows.len());
}

#[test]
fn every_variable_of_the_launcher_is_a_flag_of_serve_too() {
    let commands = Cli::command();
    let serve = commands.find_subcommand("serve").unwrap();
    for variable in TABLE.iter().filter(|variable| variable.form != Form::Environment) {
        let arg = serve.get_arguments().find(|arg| *arg.get_id() == *variable.id());
        let arg = arg.unwrap_or_else(|| panic!("{} is no flag", variable.name));
        assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(variable.name));
        assert_eq!(arg.get_long(), Some(&*variable.flag()));
        let is_honoured = matches!(variable.fate, Fate::Honoured(_));
        let is_ours = arg.get_help_heading() != Some(HEADING);
        assert_eq!(is_honoured, is_ours, "{}", variable.name);
    }
}

#[test]
fn what_must_not_be_passed_over_is_refused_with_its_value() {
    for (words, named) in [
        ("--kv-cache-dtype fp8_e5m2", Some("--kv-cache-dtype (fp8_e5m2)")),
        ("--lora-adapters a/b,c/d", Some("--lora-adapters (a/b,c/d)")),
        ("--num-shard 2", Some("--num-shard (2)")),
        ("--num-shard 1 --sharded False", None),
        ("--sharded true", Some("--sharded (true)")),
        ("--rope-scaling dynamic", Some("--rope-scaling (dynamic)")),
        ("--rope-scaling linear --rope-factor 1.0", None),
        ("--rope-factor 2", Some("--rope-factor (2)")),
        ("--speculate 3 --trust-remote-code --usage-stats on", None),
    ] {
        let refusal = given(words).check().err();
        match (named, &refusal) {
            (Some(named), Some(refusal)) => assert!(refusal.starts_with(named), "{refusal}"),
            (None, None) => {}
            _ => panic!("`{words}`: {refusal:?}"),
        }
    }
}

#[test]
fn what_asks_for_nothing_is_not_told_and_what_is_told_hides_its_value() {
    let quiet = "--speculate 0 --trust-remote-code=false --ngrok=off --usage-stats off \
                 --cuda-graphs 0";
    let told = given("--ngrok --ngrok-authtoken s3cret");
    let names: Vec<&str> = told.given.iter().map(|given| given.name.as_str()).collect();
    assert!(names.ends_with(&["--ngrok", "--ngrok-authtoken"]), "{names:?}");
    assert!(!format!("{told:?}").contains("s3cret"));
    let flags = |args: &TgiArgs| args.given.iter().filter(|g| g.name.starts_with("--")).count();
    assert_eq!((flags(&given(quiet)), flags(&told)), (0, 2));
}

/// The table as users read it.
fn markdown() -> String {
    let mut rows = String::from("| variable | what becomes of it |\n|---|---|\n");
    for variable in TABLE {
        let flag = match variable.form {
            Form::Environment => String::new(),
            _ => format!(", `--{}`", variable.flag()),
        };
        let what = match variable.fate {
            Fate::Honoured("") => "honoured".to_owned(),
            Fate::Honoured(note) => format!("honoured: {note}"),
            Fate::Ignored(reason) => format!("no effect, and a warning: {reason}"),
            Fate::Refused(rule) => format!("**refused**: {rule}"),
        };
        let unless = match variable.neutral {
            [] => String::new(),
            ["false", ..] => " (silent for `false`)".to_owned(),
            values => format!(" (silent for `{}`)", values.join("`, `")),
        };
        rows += &format!("| `{}`{flag} | {what}{unless} |\n", variable.name);
    }
    rows
}

#[test]
fn the_page_for_users_of_tgi_holds_this_table() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(path).unwrap_or_default();
    let table = markdown();
    assert!(page.contains(&table), "{PAGE} must hold this table:\n\n{table}");
}
