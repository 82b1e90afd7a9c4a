//! What the figures were measured on, in one paragraph.

use std::fs;
use std::path::Path;

/// Machine, kernel, file system and load; nothing that names a user or a place.
pub(crate) fn describe(program: &Path, load: Option<&str>) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_string());
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let size = program.metadata().map_or(0, |metadata| metadata.len() >> 10);
    format!(
        "{cores} cores ({cpu}), memory {memory}, Linux {}, data on {}, load {}; outlive {}, {size} KiB.\n\
         Timings are noisy: whatever else the machine does is in them. p99 of fewer than 100 values is the largest.",
        kernel.trim(),
        file_system(&std::env::temp_dir()).unwrap_or_else(|| "an unknown file system".to_string()),
        load.unwrap_or("unknown"),
        env!("CARGO_PKG_VERSION"),
    )
}

/// The three load averages.
pub(crate) fn load() -> Option<String> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    Some(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}

/// The value of `name : value` in a file.
pub(crate) fn field(path: impl AsRef<Path>, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_string())
    })
}

/// The kind of file system that holds a path: that of the longest mount point above it.
fn file_system(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?.to_string(), words.next()?.to_string()))
    });
    let holding = mounts.filter(|(place, _)| path.starts_with(place));
    holding.max_by_key(|(place, _)| place.len()).map(|(_, kind)| kind)
}
