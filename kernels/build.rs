//! Compiles the CUDA kernels, where the feature `cuda` asks for them: each `src/**/NAME.cu` becomes
//! `OUT_DIR/NAME.fatbin`, machine code for every generation that is supported, with the compiler's
//! report of registers and memory beside it (`NAME.ptxas`).
//!
//! The compiler is that of `NVCC`, of `CUDA_HOME` or `CUDA_PATH`, the one that `kernels/install-nvcc`
//! has installed, or the one on the `PATH`.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

/// Machine code for Ampere and Ada (8.0), for Hopper (9.0), and text that drivers of later
/// generations compile.
const TARGETS: [&str; 3] = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=src");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let (mut kernels, mut headers) = (Vec::new(), Vec::new());
    find(Path::new("src"), &mut |path| match path.extension().and_then(OsStr::to_str) {
        Some("cu") => kernels.push(path),
        Some("cuh") => headers.push(path),
        _ => {}
    });
    headers.sort();
    let compiler = compiler();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let queue = Mutex::new(kernels.into_iter().collect::<VecDeque<_>>());
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(kernel) =
                    { queue.lock().expect("nobody panics with it").pop_front() }
                {
                    compile(&compiler, &kernel, &headers, &out);
                }
            });
        }
    });
}

/// Calls `found` with every file below `directory`.
fn find(directory: &Path, found: &mut impl FnMut(PathBuf)) {
    for entry in fs::read_dir(directory).expect("the sources can be read") {
        let path = entry.expect("the sources can be read").path();
        if path.is_dir() {
            find(&path, found);
        } else {
            found(path);
        }
    }
}

fn compiler() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let installed = Path::new("../target/nvcc/nvidia/cu13").to_owned();
    let mut candidates = homes.chain([installed]).map(|home| home.join("bin/nvcc"));
    candidates.find(|nvcc| nvcc.is_file()).unwrap_or_else(|| "nvcc".into())
}

/// Compiles one file, unless it was compiled before as it is.
fn compile(compiler: &Path, kernel: &Path, headers: &[PathBuf], out: &Path) {
    let name = kernel.file_stem().and_then(OsStr::to_str).expect("a kernel's name is text");
    let mut hasher = DefaultHasher::new();
    (compiler, TARGETS).hash(&mut hasher);
    for path in headers.iter().map(PathBuf::as_path).chain([kernel]) {
        fs::read(path).expect("the sources can be read").hash(&mut hasher);
    }
    let hash = hasher.finish().to_string();
    let [image, report, stamp] =
        ["fatbin", "ptxas", "hash"].map(|end| out.join(format!("{name}.{end}")));
    if image.is_file() && fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == hash) {
        return;
    }
    let mut command = Command::new(compiler);
    command.args(["-std=c++17", "-O3", "--fatbin", "-Werror", "all-warnings"]);
    command.args(["-Xptxas", "-v,-warn-spills", "-Isrc/cuda"]).args(TARGETS);
    command.arg(kernel).arg("-o").arg(&image);
    let output = command.output().unwrap_or_else(|error| {
        panic!(
            "{} cannot be run ({error}); install CUDA 13, or run kernels/install-nvcc, which \
             installs its compiler alone",
            compiler.display()
        )
    });
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{} was not compiled:\n{said}", kernel.display());
    fs::write(report, said).expect("OUT_DIR can be written");
    fs::write(stamp, hash).expect("OUT_DIR can be written");
}
