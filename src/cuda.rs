//! The executable `millstream-cuda`: the worker on a GPU. `millstream serve` starts it.

use std::process::ExitCode;

fn main() -> ExitCode {
    millstream::cuda_main()
}
