//! What is wrong with a command line is told in one line, and nothing is started.

use std::net::TcpListener;
use std::process::Output;

use crate::common::executable;

fn run(args: &[&str]) -> Output {
    executable().args(args).output().expect("cannot start the executable")
}

/// Runs into an error that is told in one line.
fn check_error(args: &[&str], named: &[&str]) {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{args:?} tells:\n{stderr}");
    for named in named {
        assert!(errors[0].contains(named), "{args:?} does not name {named}: {stderr}");
    }
    assert!(!stderr.contains("panicked") && !stderr.contains("backtrace"), "{stderr}");
    assert!(!output.status.success() && output.status.code().is_some(), "{args:?} succeeded");
    assert!(output.stdout.is_empty(), "{args:?} prints to standard output");
}

#[test]
fn a_wrong_flag_is_one_line() {
    check_error(&["--prot", "80"], &["--prot"]);
    check_error(&["serve", "--port", "many"], &["--port", "many"]);
    check_error(&["serve", "--log-level", "a=b=c"], &["--log-level"]);
    check_error(&["sevre"], &["sevre"]);
}

#[test]
fn a_model_that_is_not_there_is_one_line() {
    let empty = tempfile::tempdir().unwrap();
    let absent = empty.path().join("absent");
    let absent = absent.to_str().unwrap();
    check_error(&["--port", "0", "--model-id", absent], &[absent, "does not exist"]);
    let empty = empty.path().to_str().unwrap();
    check_error(&["--port", "0", "--model-id", empty], &[empty, "config.json"]);
}

#[test]
fn a_model_that_the_worker_cannot_load_is_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let config = r#"{"model_type": "abacus", "architectures": ["AbacusForCausalLM"]}"#;
    std::fs::write(directory.path().join("config.json"), config).unwrap();
    let path = directory.path().to_str().unwrap();
    let args = ["--port", "0", "--model-id", path, "--load-format", "dummy"];
    check_error(&args, &["abacus"]);
}

#[test]
fn a_worker_that_cannot_compute_on_a_gpu_says_which_can() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let args = ["worker", "--device", "cuda", "--listen", socket.to_str().unwrap()];
    check_error(&args, &["--device cuda", "millstream-cuda"]);
}

#[test]
fn a_taken_port_is_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    check_error(&["--port", &port], &[&port]);
}

#[test]
fn a_load_test_without_a_server_is_one_line() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    check_error(&["bench", "--url", &format!("http://{free}")], &[&free.to_string()]);
}

#[test]
fn help_is_printed_for_every_subcommand() {
    for (args, part) in [
        (&["--help"][..], "bench"),
        (&["serve", "--help"][..], "--max-concurrent-requests"),
        (&["worker", "--help"][..], "--listen"),
        (&["bench", "--help"][..], "--concurrency"),
    ] {
        let output = run(args);
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && stdout.contains(part), "{args:?}: {stdout}");
    }
}
