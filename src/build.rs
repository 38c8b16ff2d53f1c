//! What a bug report needs to know about this build: the commit, and how it was compiled.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    // Where the sources come without their history, as in a container's build, the caller names it.
    println!("cargo::rerun-if-env-changed=GIT_SHA");
    let given = std::env::var("GIT_SHA").ok().filter(|commit| !commit.trim().is_empty());
    let commit = given.or_else(|| {
        // The log grows with every commit and checkout, whichever branch it is.
        let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
        if Path::new(&log).exists() {
            println!("cargo::rerun-if-changed={log}");
        }
        git(&["rev-parse", "HEAD"])
    });
    set("COMMIT", commit.as_deref().unwrap_or("unknown").trim());
    for (name, variable) in
        [("TARGET", "TARGET"), ("PROFILE", "PROFILE"), ("CPU_FEATURES", "CARGO_CFG_TARGET_FEATURE")]
    {
        set(name, &std::env::var(variable).unwrap_or_default());
    }
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    set("RUSTC", output(&rustc, &["--version"]).as_deref().unwrap_or("unknown"));
}

fn set(name: &str, value: &str) {
    println!("cargo::rustc-env=MILLSTREAM_{name}={value}");
}

fn git(args: &[&str]) -> Option<String> {
    output("git", args)
}

/// The first line that a program says, if it succeeds.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}
