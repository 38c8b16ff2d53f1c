//! The executable `millstream`.

use std::process::ExitCode;

fn main() -> ExitCode {
    millstream::main()
}
