//! The machine, and what this process may use of it.
//!
//! Read from Linux's own files. A container sees the machine's numbers in most of them, so the
//! limits of its cgroups are told beside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::json;

use super::Row;

/// How long `nvidia-smi` may take: a broken driver can hold it for ever.
const GPU_TIMEOUT: Duration = Duration::from_secs(10);

/// Facts about the machine.
pub(super) fn rows() -> Vec<Row> {
    let mut rows = system(Path::new("/"));
    rows.extend(resources(Path::new("/")));
    let gpus = gpus();
    let text = if gpus.is_empty() { "none".to_owned() } else { gpus.join("; ") };
    rows.push(Row::new("gpu", json!(gpus), text));
    rows
}

fn read(root: &Path, path: &str) -> Option<String> {
    fs::read_to_string(root.join(path)).ok()
}

/// The value of the first line `name: value`, or `name=value`.
fn field(text: &str, name: &str, separator: char) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(separator)?;
        (key.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn system(root: &Path) -> Vec<Row> {
    let release = read(root, "etc/os-release");
    let name = release.and_then(|release| field(&release, "PRETTY_NAME", '='));
    let kernel = read(root, "proc/sys/kernel/osrelease").map(|kernel| kernel.trim().to_owned());
    let cpuinfo = read(root, "proc/cpuinfo");
    vec![
        Row::text("os", name.or_else(|| Some(std::env::consts::OS.into()))),
        Row::text("kernel", kernel),
        Row::text("cpu", cpuinfo.and_then(|cpuinfo| field(&cpuinfo, "model name", ':'))),
    ]
}

/// What there is, and the limits on it; the tightest of nested cgroups counts.
fn resources(root: &Path) -> Vec<Row> {
    let (physical, usable) = (num_cpus::get_physical(), num_cpus::get());
    let status = read(root, "proc/self/status").unwrap_or_default();
    let affinity = field(&status, "Cpus_allowed_list", ':');
    let limits = Cgroups::new(root);
    let quota = limits.cpu_quota();
    let quota_text = quota.map_or("none".into(), |cores| format!("{cores} cores"));
    let meminfo = read(root, "proc/meminfo").unwrap_or_default();
    let memory = |name| {
        let kib = field(&meminfo, name, ':')?;
        kib.trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let (total, available, limit) = (memory("MemTotal"), memory("MemAvailable"), limits.memory());
    vec![
        Row::new(
            "cores",
            json!({"physical": physical, "usable": usable, "affinity": affinity, "quota": quota}),
            format!(
                "{physical} physical, {usable} usable threads, affinity {}, quota {quota_text}",
                affinity.as_deref().unwrap_or("unknown")
            ),
        ),
        Row::new(
            "memory",
            json!({"total_bytes": total, "available_bytes": available, "limit_bytes": limit}),
            format!(
                "{} in all, {} available, limit {}",
                mib(total, "unknown"),
                mib(available, "unknown"),
                mib(limit, "none")
            ),
        ),
        Row::text("open_files", open_files(root)),
    ]
}

fn mib(bytes: Option<u64>, absent: &str) -> String {
    bytes.map_or(absent.into(), |bytes| format!("{} MiB", bytes >> 20))
}

/// How many files, sockets included, may be open: the limit now, and the one it can be raised to.
fn open_files(root: &Path) -> Option<String> {
    let limits = read(root, "proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_whitespace();
    Some(format!("{}, at most {}", words.next()?, words.next()?))
}

/// The directories of this process's cgroups, from its own up to the mount.
struct Cgroups {
    unified: Vec<PathBuf>,
    memory: Vec<PathBuf>,
    cpu: Vec<PathBuf>,
}

impl Cgroups {
    fn new(root: &Path) -> Cgroups {
        let lines = read(root, "proc/self/cgroup").unwrap_or_default();
        // `id:controllers:path`; version 2 has no controllers. The path may be one that only the
        // host sees, and then the mount itself is the container's own cgroup.
        let nested = |controller: &str, mount: &str| -> Vec<PathBuf> {
            let mount = root.join(mount);
            let path = lines.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let controllers = fields.next()?;
                controllers.split(',').any(|name| name == controller).then(|| fields.next())?
            });
            let Some(path) = path else { return Vec::new() };
            let own = mount.join(path.trim_start_matches('/'));
            let up = own.ancestors().take_while(|directory| directory.starts_with(&mount));
            up.map(Path::to_owned).collect()
        };
        Cgroups {
            unified: nested("", "sys/fs/cgroup"),
            memory: nested("memory", "sys/fs/cgroup/memory"),
            cpu: nested("cpu", "sys/fs/cgroup/cpu"),
        }
    }

    /// Bytes; `None` where nothing limits them.
    fn memory(&self) -> Option<u64> {
        let number = |path: PathBuf| -> Option<u64> {
            let bytes = fs::read_to_string(path).ok()?.trim().parse().ok()?;
            // Version 1 writes the largest multiple of a page for "none".
            (bytes < 1 << 62).then_some(bytes)
        };
        let unified = self.unified.iter().filter_map(|path| number(path.join("memory.max")));
        let own = self.memory.iter().filter_map(|path| number(path.join("memory.limit_in_bytes")));
        unified.chain(own).min()
    }

    /// Cores' worth of time; `None` where nothing limits it.
    fn cpu_quota(&self) -> Option<f64> {
        let read = |path: PathBuf| fs::read_to_string(path).ok();
        let share = |quota: &str, period: &str| -> Option<f64> {
            let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
            (quota > 0.0 && period > 0.0).then(|| quota / period)
        };
        let unified = self.unified.iter().filter_map(|path| {
            let text = read(path.join("cpu.max"))?;
            let (quota, period) = text.trim().split_once(' ')?;
            share(quota, period)
        });
        let own = self.cpu.iter().filter_map(|path| {
            let quota = read(path.join("cpu.cfs_quota_us"))?;
            share(quota.trim(), read(path.join("cpu.cfs_period_us"))?.trim())
        });
        unified.chain(own).min_by(f64::total_cmp)
    }
}

/// The NVIDIA GPUs with their memory and driver; none where the driver's tool is not there.
fn gpus() -> Vec<String> {
    let (send, answer) = mpsc::channel();
    let ask = move || {
        let query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
        // Nobody listens any more only where it took too long.
        let _ = send.send(Command::new("nvidia-smi").args(query).output());
    };
    std::thread::spawn(ask);
    let Ok(Ok(output)) = answer.recv_timeout(GPU_TIMEOUT) else { return Vec::new() };
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Vec::new();
    }
    lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_tightest_cgroup_limits_memory_and_cores() {
        for (files, memory, quota) in [
            (&[][..], None, None),
            (
                &[
                    ("proc/self/cgroup", "0::/a/b\n"),
                    ("sys/fs/cgroup/a/memory.max", "1000\n"),
                    ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                    ("sys/fs/cgroup/cpu.max", "400000 100000\n"),
                    ("sys/fs/cgroup/a/b/cpu.max", "150000 100000\n"),
                ],
                Some(1000),
                Some(1.5),
            ),
            (
                &[
                    ("proc/self/cgroup", "5:cpu,cpuacct:/host\n4:memory:/host\n"),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000\n"),
                    ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
                    ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
                ],
                Some(2000),
                Some(0.5),
            ),
            (
                &[
                    ("proc/self/cgroup", "5:cpu:/\n4:memory:/\n"),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                    ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
                    ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
                ],
                None,
                None,
            ),
        ] {
            let root = machine(files);
            let cgroups = Cgroups::new(root.path());
            assert_eq!((cgroups.memory(), cgroups.cpu_quota()), (memory, quota), "{files:?}");
        }
    }

    #[test]
    fn the_system_is_read_from_its_own_files_and_what_is_not_there_is_unknown() {
        let root = machine(&[
            ("etc/os-release", "NAME=x\nPRETTY_NAME=\"Debian 12\"\n"),
            ("proc/sys/kernel/osrelease", "6.1.0\n"),
            ("proc/cpuinfo", "processor\t: 0\nmodel name\t: A CPU\n"),
            ("proc/self/limits", "Max open files            1024         4096         files\n"),
        ]);
        let texts: Vec<String> = system(root.path()).into_iter().map(|row| row.text).collect();
        assert_eq!(texts, ["Debian 12", "6.1.0", "A CPU"]);
        assert_eq!(open_files(root.path()).as_deref(), Some("1024, at most 4096"));
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(system(empty.path())[1].text, "unknown");
    }
}
