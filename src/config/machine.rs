//! What this machine, or the container's share of it, has to give.

use std::fs;
use std::num::NonZeroUsize;

/// Facts about the machine that defaults depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// CPUs this process may use, a container's quota counted.
    pub cpus: NonZeroUsize,
    /// Bytes of memory that can still be taken, a container's limit counted.
    pub available_memory_bytes: usize,
}

impl Machine {
    /// Looks at the machine this runs on; what cannot be read is assumed small.
    pub fn detect() -> Self {
        let cpus = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let free = fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| mem_available(&text));
        let free = free.unwrap_or(ASSUMED_MEMORY_BYTES);
        let available_memory_bytes = cgroup_left().map_or(free, |left| left.min(free));
        Self {
            cpus,
            available_memory_bytes,
        }
    }
}

/// Memory assumed where the system does not say.
const ASSUMED_MEMORY_BYTES: usize = 2 << 30;

fn mem_available(meminfo: &str) -> Option<usize> {
    let line = meminfo
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Bytes left under the limit of this process's cgroup (version 2); none without a limit.
fn cgroup_left() -> Option<usize> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let folder = format!("/sys/fs/cgroup{}", path.trim_end_matches('/'));
    let read = |name: &str| fs::read_to_string(format!("{folder}/{name}")).ok();
    let limit: usize = read("memory.max")?.trim().parse().ok()?;
    let used: usize = read("memory.current")?.trim().parse().ok()?;
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:       100 kB\nMemFree: 1 kB\nMemAvailable:   42 kB\n";
        assert_eq!(mem_available(text), Some(42 * 1024));
        assert_eq!(mem_available("MemTotal: 100 kB"), None);
        assert!(Machine::detect().available_memory_bytes > 0);
    }
}
