//! Variables: TGI's as its containers set them, wrong ones, empty ones, secret ones.

use std::process::Output;

use serde_json::{Value, json};

use crate::common::{Server, chat, executable};

/// The model of the demo, as a directory.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo/model");

/// The page that tells users what becomes of each variable; its table is the program's own.
const PAGE: &str = include_str!("../../deploy/from-tgi.md");

/// What TGI's launcher takes where nothing is set, and what its image and Docker set.
const TGI: &[(&str, &str)] = &[
    ("MODEL_ID", MODEL),
    ("VALIDATION_WORKERS", "2"),
    ("TRUST_REMOTE_CODE", "false"),
    ("MAX_CONCURRENT_REQUESTS", "128"),
    ("MAX_BEST_OF", "2"),
    ("MAX_STOP_SEQUENCES", "4"),
    ("MAX_TOP_N_TOKENS", "5"),
    ("MAX_INPUT_TOKENS", "400"),
    ("MAX_TOTAL_TOKENS", "512"),
    ("WAITING_SERVED_RATIO", "0.3"),
    ("MAX_BATCH_PREFILL_TOKENS", "450"),
    ("MAX_WAITING_TOKENS", "20"),
    ("CUDA_GRAPHS", "1,2,4,8,16,32"),
    ("HOSTNAME", "f00dcafe4711"),
    ("PORT", "80"),
    ("PROMETHEUS_PORT", "9000"),
    ("MASTER_ADDR", "localhost"),
    ("MASTER_PORT", "29500"),
    ("DISABLE_CUSTOM_KERNELS", "false"),
    ("CUDA_MEMORY_FRACTION", "1.0"),
    ("JSON_OUTPUT", "false"),
    ("OTLP_SERVICE_NAME", "text-generation-inference.router"),
    ("NGROK", "false"),
    ("DISABLE_GRAMMAR_SUPPORT", "false"),
    ("MAX_CLIENT_BATCH_SIZE", "4"),
    ("USAGE_STATS", "on"),
    ("PAYLOAD_LIMIT", "2000000"),
    ("ENABLE_PREFILL_LOGPROBS", "false"),
    ("GRACEFUL_TERMINATION_TIMEOUT", "90"),
    ("HF_HOME", "/data"),
    ("HF_HUB_ENABLE_HF_TRANSFER", "1"),
    ("NUM_SHARD", "1"),
    ("QUANTIZE", ""),
    ("API_KEY", ""),
];

/// A value that asks for something of every variable.
const ASKING: &str = "yes";

/// The variables of which the page says this.
fn variables(fate: &str) -> Vec<&'static str> {
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter(|row| row.contains(&format!("| {fate}")));
    let names: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    assert!(names.len() > 5, "the page has {} rows of `{fate}`", names.len());
    names
}

fn run(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = executable();
    command.args(args).envs(variables.iter().copied());
    command.output().expect("cannot start the executable")
}

/// Ends with code 2 and one line that names all of these.
fn check_refused(args: &[&str], variables: &[(&str, &str)], named: &[&str]) {
    let output = run(args, variables);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{variables:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{variables:?}: {stderr}");
    for named in named {
        assert!(stderr.contains(named), "{variables:?} does not name {named}: {stderr}");
    }
}

#[test]
fn a_container_of_tgi_starts_as_it_is() {
    let server = Server::start_with(&[], TGI);
    assert!(server.address().ip().is_loopback());
    let answer = server.chat(&chat("What is 2 + 3?", json!({"max_tokens": 8})));
    assert_eq!(answer["model"], MODEL);
    // Its limits hold.
    for (more, named) in [
        (json!({"n": 3}), "n must be"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "4"),
        (json!({"max_tokens": 513}), "512"),
    ] {
        let refused = server.post("/v1/chat/completions", &chat("Hi!", more));
        assert_eq!(refused.status, 400, "{}", refused.body);
        let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(named), "{message}");
    }
    for name in ["WAITING_SERVED_RATIO", "PROMETHEUS_PORT", "USAGE_STATS", "f00dcafe4711"] {
        assert!(server.log_contains(name), "{name} is not in the log");
    }
    for name in ["TRUST_REMOTE_CODE", "CUDA_MEMORY_FRACTION", "NGROK", "NUM_SHARD"] {
        assert!(!server.log_contains(name), "{name} asks for nothing");
    }
    assert!(server.log_contains("API_KEY is set to nothing"));
}

#[test]
fn what_has_no_effect_is_named_in_the_log() {
    let names = variables("no effect, and a warning");
    let asking: Vec<(&str, &str)> = names.iter().map(|name| (*name, ASKING)).collect();
    let server = Server::start_with(&[], &asking);
    for name in names {
        assert!(server.log_contains(&format!("variable=\"{name}\"")), "{name} is not in the log");
    }
}

#[test]
fn what_must_not_be_passed_over_ends_the_start_by_name() {
    for name in variables("**refused**") {
        let named = format!("{name} ({ASKING}) is not supported: ");
        check_refused(&["--port", "0"], &[(name, ASKING)], &[&named]);
    }
}

#[test]
fn a_wrong_variable_is_told_by_its_name_the_rule_and_the_value() {
    for (name, value, rule) in [
        ("PORT", "many", "invalid digit"),
        ("PORT", "70000", "0..=65535"),
        ("MAX_CONCURRENT_REQUESTS", "0", "1..=1048576"),
        ("JSON_OUTPUT", "perhaps", "value was not a boolean"),
        ("LOG_LEVEL", "loud", "error, warn, info"),
        ("DTYPE", "int3", "bf16"),
        ("CORS_ALLOW_ORIGIN", "chat.example.com", "SCHEME://HOST"),
        ("GRACEFUL_TERMINATION_TIMEOUT", "5m", "number of seconds"),
    ] {
        check_refused(&[], &[(name, value)], &[&format!("{name}: "), value, rule]);
    }
    let both = [("MAX_INPUT_LENGTH", "7"), ("MAX_INPUT_TOKENS", "8")];
    check_refused(&[], &both, &["MAX_INPUT_LENGTH (7)", "MAX_INPUT_TOKENS (8)"]);
    // A flag that is wrong is not the variable's fault.
    let output = run(&["--port", "many"], &[("PORT", "80")]);
    assert!(!String::from_utf8(output.stderr).unwrap().contains("PORT:"));
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    let mut empty = variables("honoured");
    empty.extend(variables("no effect"));
    empty.extend(variables("**refused**"));
    let empty: Vec<(&str, &str)> = empty.into_iter().map(|name| (name, "")).collect();
    let server = Server::start_with(&[], &empty);
    let answer = server.chat(&chat("Hi!", json!({"max_tokens": 4})));
    assert_eq!(answer["model"], "millstream-demo");
    assert!(!server.log_contains("has no effect"));
}

#[test]
fn secrets_show_in_no_help_no_report_and_no_command_line() {
    let secrets = [("API_KEY", "s3cret"), ("HF_TOKEN", "s3cret"), ("NGROK_AUTHTOKEN", "s3cret")];
    for args in [&["serve", "--help"][..], &["bench", "--help"], &["env"], &["env", "--json"]] {
        let output = run(args, &secrets);
        assert!(output.status.success());
        assert!(!String::from_utf8(output.stdout).unwrap().contains("s3cret"), "{args:?}");
    }
    let server = Server::start_with(&["--env"], &secrets);
    assert!(!server.log_contains("s3cret"));
    for file in ["cmdline", "environ"] {
        let path = format!("/proc/{}/{file}", server.worker());
        // Only Linux has it.
        let Ok(text) = std::fs::read(path) else { continue };
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains("API_KEY"), "{file}: {text}");
        assert!(file == "environ" || !text.contains("s3cret"), "{file}: {text}");
    }
}

#[test]
fn the_report_names_the_build_the_machine_and_what_is_set() {
    let variables = [("MAX_TOTAL_TOKENS", "512"), ("HF_TOKEN", "x"), ("HF_HOME", "/data")];
    let output = run(&["env", "--json"], &variables);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["hub_cache"], "/data/hub");
    let set = json!({"HF_HOME": "/data", "HF_TOKEN": "(hidden)", "MAX_TOTAL_TOKENS": "512"});
    assert_eq!(report["variables"], set);
    let table = String::from_utf8(run(&["env"], &variables).stdout).unwrap();
    assert!(table.contains("HF_TOKEN=(hidden)") && table.contains("computes with"), "{table}");
}

#[test]
fn health_is_an_exit_code() {
    let server = Server::start(&["--api-key", "s3cret"]);
    let url = format!("http://{}", server.address());
    assert!(run(&["health", "--url", &url], &[]).status.success());
    let port = server.address().port().to_string();
    let asked = [("PORT", port.as_str()), ("HOSTNAME", "f00dcafe4711")];
    assert!(run(&["health"], &asked).status.success());
    drop(server);
    let output = run(&["health"], &asked);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains(&port), "{stderr}");
}

#[test]
fn the_socket_lies_where_it_is_told_to() {
    let place = tempfile::tempdir().unwrap();
    let prefix = place.path().join("text-generation-server");
    let server = Server::start_with(&[], &[("SHARD_UDS_PATH", prefix.to_str().unwrap())]);
    let made: Vec<_> = std::fs::read_dir(place.path()).unwrap().map(Result::unwrap).collect();
    assert_eq!(made.len(), 1);
    assert!(made[0].file_name().to_str().unwrap().starts_with("text-generation-server"));
    assert!(made[0].path().join("worker.sock").exists());
    drop(server);
}

#[test]
fn a_tokenizer_configuration_of_the_operators_own_replaces_the_models() {
    let place = tempfile::tempdir().unwrap();
    let config = place.path().join("config.json");
    let template = json!({"chat_template": "{{ mood }}{{ messages[0].content }}"});
    std::fs::write(&config, template.to_string()).unwrap();
    let variables = [("TOKENIZER_CONFIG_PATH", config.to_str().unwrap())];
    let own = Server::start(&[]);
    let other = Server::start_with(&[], &variables);
    let moody = Server::start_with(&["--chat-template-kwargs", r#"{"mood": "Sad. "}"#], &variables);
    let prompt_tokens = |server: &Server| {
        let answer = server.chat(&chat("Who are you?", json!({"max_tokens": 1})));
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    assert!(prompt_tokens(&other) < prompt_tokens(&own));
    assert!(prompt_tokens(&other) < prompt_tokens(&moody));
}

#[test]
fn web_pages_may_read_answers_only_where_their_origin_is_named() {
    let server = Server::start(&["--cors-allow-origin", "https://a.example,https://b.example"]);
    let allowed = |origin| {
        let answer = server.get_with("/v1/models", ("origin", origin));
        answer.header("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(allowed("https://b.example").as_deref(), Some("https://b.example"));
    assert_eq!(allowed("https://c.example"), None);
}

#[test]
fn the_cache_is_where_its_flag_or_variables_say() {
    let model = ["--port", "0", "--model-id", "org/name"];
    let offline = ("HF_HUB_OFFLINE", "1");
    for (flags, variables, cache) in [
        (&["--huggingface-hub-cache", "/absent/flag"][..], &[][..], "/absent/flag "),
        (&[], &[("HUGGINGFACE_HUB_CACHE", "/absent/variable")], "/absent/variable "),
        (&[], &[("HF_HOME", "/absent/home"), ("HUGGINGFACE_HUB_CACHE", "")], "/absent/home/hub "),
        (&["--huggingface-hub-cache", "/x"], &[("HF_HUB_CACHE", "/absent/new")], "/absent/new "),
    ] {
        let output = run(&[&model[..], flags].concat(), &[&[offline], variables].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(cache), "{flags:?} {variables:?}: {stderr}");
    }
}
