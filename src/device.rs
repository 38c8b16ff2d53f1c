//! Where a model computes: the executable that runs it.
//!
//! The worker on a GPU is an executable of its own, `millstream-cuda`, beside this one. It needs a
//! driver to run and says by itself whether there is a GPU that it can use, so this one needs to know
//! nothing of either.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail};
use tracing::{info, warn};

use crate::args::Device;

/// The worker on a GPU.
const CUDA_WORKER: &str = "millstream-cuda";

/// The executable whose `worker` computes on `device`.
pub(crate) fn program(device: Device) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this executable")?;
    let cuda = own.with_file_name(CUDA_WORKER);
    match (device, cuda.is_file()) {
        (Device::Cpu, _) | (Device::Auto, false) => Ok(own),
        (Device::Cuda, false) => bail!(
            "--device cuda needs {CUDA_WORKER} beside this executable; build it with `cargo build \
             --release --features cuda`"
        ),
        (Device::Cuda, true) => {
            let gpu = probe(&cuda).context("--device cuda")?;
            info!(gpu, "computing on the GPU");
            Ok(cuda)
        }
        (Device::Auto, true) => Ok(match probe(&cuda) {
            Ok(gpu) => {
                info!(gpu, "computing on the GPU");
                cuda
            }
            Err(error) => {
                let reason = format!("{error:#}");
                warn!(reason, "computing on the processor: no GPU can be used");
                own
            }
        }),
    }
}

/// The GPU that `worker` would run on, as it describes it.
fn probe(worker: &std::path::Path) -> anyhow::Result<String> {
    let output = Command::new(worker)
        .arg("probe")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {CUDA_WORKER}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = text(&output.stderr);
    match said.strip_prefix("error: ").unwrap_or(&said) {
        "" => Err(anyhow!("{CUDA_WORKER} ended with {}", output.status)),
        reason => Err(anyhow!(reason.to_owned())),
    }
}

/// Says which GPU a worker would run on.
#[cfg(feature = "cuda")]
pub(crate) fn tell() -> anyhow::Result<()> {
    let gpu = millstream_kernels::cuda::Gpu::open(0)?;
    let properties = gpu.properties();
    let (major, minor) = properties.compute_capability;
    let driver = properties.driver_version;
    println!(
        "{}, compute capability {major}.{minor}, {} MiB, driver for CUDA {}.{}",
        properties.name,
        properties.memory >> 20,
        driver / 1000,
        driver % 1000 / 10
    );
    Ok(())
}
