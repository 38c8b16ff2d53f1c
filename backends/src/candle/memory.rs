//! How much memory is free for this process: the machine's, within the limits of its cgroups.
//!
//! A container sees the machine's memory in /proc/meminfo, and is killed at its own limit, so
//! both are asked and the smaller counts. Limits nest: every cgroup from the process's own up to
//! the root is asked. Pages of files count as free, because the system takes them back when it
//! needs them; the checkpoint that was just read is such pages.

use std::fs;
use std::path::{Path, PathBuf};

/// What is assumed free where the system does not say (it is not Linux).
const ASSUMED: u64 = 4 << 30;

/// Bytes that can be allocated without swapping or being killed.
pub(crate) fn available() -> u64 {
    available_under(Path::new("/")).unwrap_or(ASSUMED)
}

fn available_under(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let machine = field(&meminfo, "MemAvailable:")? * 1024;
    let cgroups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = cgroups.lines().flat_map(|line| cgroup_room(root, line));
    Some(limits.fold(machine, u64::min))
}

/// The names under which a version of cgroups keeps its numbers.
struct Files {
    limit: &'static str,
    usage: &'static str,
    file_pages: [&'static str; 2],
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    file_pages: ["total_inactive_file", "total_active_file"],
};
const V2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    file_pages: ["inactive_file", "active_file"],
};

/// What is left in a cgroup and in those around it. `line` is one of /proc/self/cgroup:
/// `id:controllers:path`, with id 0 and no controllers in version 2.
fn cgroup_room(root: &Path, line: &str) -> Vec<u64> {
    let mut fields = line.splitn(3, ':');
    let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
    else {
        return Vec::new();
    };
    let (mount, files) = match (id, controllers) {
        ("0", "") => (root.join("sys/fs/cgroup"), &V2),
        (_, list) if list.split(',').any(|name| name == "memory") => {
            (root.join("sys/fs/cgroup/memory"), &V1)
        }
        _ => return Vec::new(),
    };
    // In a container the path may be one that only the host sees; then only the mount is left,
    // and that is the container's own cgroup.
    let own: PathBuf = mount.join(path.trim_start_matches('/'));
    let nested = own.ancestors().take_while(|directory| directory.starts_with(&mount));
    nested.filter_map(|directory| room(directory, files)).collect()
}

/// What is left in one cgroup; `None` where it sets no limit.
fn room(directory: &Path, files: &Files) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(directory.join(name)).ok()?.trim().parse().ok()
    };
    let limit = number(files.limit)?;
    let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let file_pages: u64 = files.file_pages.iter().filter_map(|name| field(&stat, name)).sum();
    Some(limit.saturating_sub(number(files.usage)?.saturating_sub(file_pages)))
}

/// The number after `name` in a file of `name number` lines.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut fields = text.lines().map(str::split_whitespace);
    let mut line = fields.find(|line| line.clone().next() == Some(name))?;
    line.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal: 2000 kB\nMemFree: 100 kB\nMemAvailable: 1000 kB\n";

    fn check(files: &[(&str, &str)], want: Option<u64>) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(available_under(root.path()), want, "{files:?}");
    }

    #[test]
    fn the_machine_counts_where_there_is_no_limit() {
        check(&[], None);
        check(&[("proc/meminfo", MEMINFO)], Some(1_024_000));
        check(
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "0::/app\n"),
                ("sys/fs/cgroup/app/memory.max", "max\n"),
                ("sys/fs/cgroup/app/memory.current", "5000\n"),
            ],
            Some(1_024_000),
        );
    }

    #[test]
    fn the_tightest_cgroup_counts_and_file_pages_are_free() {
        check(
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "0::/pod/app\n"),
                ("sys/fs/cgroup/pod/app/memory.max", "900000\n"),
                ("sys/fs/cgroup/pod/app/memory.current", "1000\n"),
                ("sys/fs/cgroup/pod/memory.max", "500000\n"),
                ("sys/fs/cgroup/pod/memory.current", "300000\n"),
                ("sys/fs/cgroup/pod/memory.stat", "anon 1\ninactive_file 70000\nactive_file 5\n"),
            ],
            Some(500_000 - (300_000 - 70_005)),
        );
    }

    #[test]
    fn a_version_1_limit_counts_even_if_the_path_is_the_hosts() {
        check(
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/docker/abc\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "400000\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "100000\n"),
                ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 50\n"),
            ],
            Some(300_050),
        );
    }
}
