//! The memory of this process.

/// Bytes that this process holds in memory, where the system tells (Linux).
pub fn resident_bytes() -> Option<u64> {
    of_status("VmRSS:")
}

/// The most bytes that this process ever held in memory, where the system tells (Linux).
pub fn most_resident_bytes() -> Option<u64> {
    of_status("VmHWM:")
}

fn of_status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}
