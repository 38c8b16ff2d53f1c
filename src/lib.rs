//! The executables: `millstream`, with `serve`, `worker`, `download`, `bench` and small tools behind
//! one command line; and `millstream-cuda`, the worker that computes on a GPU, which `serve` starts
//! where it finds one.

mod args;
mod banner;
mod bench;
mod demo;
mod device;
mod download;
mod environment;
mod health;
mod hub;
mod launcher;
mod logging;
mod model;
mod serve;
mod signals;
mod worker;

use std::process::ExitCode;

use args::Command;
use launcher::LaunchError;

/// What `millstream` does.
pub fn main() -> ExitCode {
    let command = match args::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let result = match command {
        Command::Bench(args) => bench::run(*args),
        Command::Env(args) => environment::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Download(args) => download::run(&args),
        Command::Serve(args) => serve::run(*args),
        Command::Worker(args) => worker::run(*args, worker::Place::Processor),
    };
    exit(result)
}

/// What `millstream-cuda` does: it is a worker, or says which GPU it would be one on.
#[cfg(feature = "cuda")]
pub fn cuda_main() -> ExitCode {
    let command = match args::parse_cuda(std::env::args_os()) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    exit(match command {
        args::CudaCommand::Worker(args) => worker::run(*args, worker::Place::Gpu),
        args::CudaCommand::Probe => device::tell(),
    })
}

/// The end of this process.
fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A worker that could not start has said why; its code is this process's as well.
            if let Some(code) = error.downcast_ref().and_then(LaunchError::told_by_worker) {
                return ExitCode::from(code);
            }
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
