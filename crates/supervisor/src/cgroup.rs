//! The cgroup leaf in which a tree lives, in version 2, version 1, or both side by side.
//!
//! The supervisor itself is never in it. Where nothing may be created the leaf has no directories, and every question gets an
//! empty answer: `tree` then finds the processes by other means.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use outlive_core::spec::{Limit, Spec};

/// A tree's own directories in the cgroup file systems.
#[derive(Debug, Default)]
pub(crate) struct Leaf {
    dirs: Vec<Dir>,
}

#[derive(Debug)]
struct Dir {
    path: PathBuf,
    kind: Kind,
    /// Limits that were set here by this process.
    enforces: Vec<Limit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Version 2: kills, freezes, counts.
    Unified,
    /// Version 1 controllers.
    Freezer,
    Memory,
    Pids,
    CpuAcct,
}

impl Kind {
    /// The kind of a leaf that exists, by the files that only it has.
    fn of(path: &Path) -> Option<Self> {
        let marks = [
            ("cgroup.events", Self::Unified),
            ("freezer.state", Self::Freezer),
            ("memory.oom_control", Self::Memory),
            ("cpuacct.usage", Self::CpuAcct),
            ("pids.max", Self::Pids),
        ];
        marks.into_iter().find(|(file, _)| path.join(file).exists()).map(|(_, kind)| kind)
    }

    /// The file that sets this limit, if directories of this kind can have one.
    fn file_of(self, limit: Limit) -> Option<&'static str> {
        match (self, limit) {
            (Self::Unified, Limit::Memory) => Some("memory.max"),
            (Self::Memory, Limit::Memory) => Some("memory.limit_in_bytes"),
            (Self::Unified | Self::Pids, Limit::Pids) => Some("pids.max"),
            (Self::Freezer | Self::CpuAcct | Self::Pids, Limit::Memory)
            | (Self::Freezer | Self::CpuAcct | Self::Memory, Limit::Pids) => None,
        }
    }
}

/// The limits that a spec asks for, with their bounds.
fn limits(spec: &Spec) -> impl Iterator<Item = (Limit, u64)> {
    let asked = [(Limit::Memory, spec.memory_bytes_max), (Limit::Pids, spec.pids_max)];
    asked.into_iter().filter_map(|(limit, most)| Some((limit, most?)))
}

/// How deep sub-groups made by an agent are looked into; the kernel allows any depth.
const DEPTH_MAX: u32 = 16;

impl Leaf {
    /// Makes the leaf below the supervisor's own groups, as far as that is allowed, with the spec's limits.
    pub(crate) fn create(spec: &Spec) -> Self {
        let named_well = !spec.cgroup.is_empty()
            && spec.cgroup.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !named_well {
            return Self::default();
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let groups = own_groups(&mounts, &own);
        let mut leaf = Self::default();
        for (kind, base) in &groups {
            // Version 2 does without the version 1 freezer and CPU counter.
            let needless = leaf.has(Kind::Unified) && matches!(kind, Kind::Freezer | Kind::CpuAcct);
            let path = base.join("outlive").join(&spec.cgroup);
            if needless || make(*kind, base, &path).is_err() {
                continue;
            }
            leaf.dirs.push(Dir { path, kind: *kind, enforces: Vec::new() });
        }
        leaf.limit(spec);
        leaf
    }

    /// Finds a leaf made earlier. Directories that are gone were empty, so nothing is missed without them.
    pub(crate) fn reopen(paths: &[String]) -> Self {
        let dirs = paths.iter().map(PathBuf::from).filter_map(|path| {
            let kind = Kind::of(&path)?;
            Some(Dir { path, kind, enforces: Vec::new() })
        });
        Self { dirs: dirs.collect() }
    }

    /// The directories, for `started`.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.dirs.iter().filter_map(|dir| dir.path.to_str().map(str::to_owned)).collect()
    }

    fn has(&self, kind: Kind) -> bool {
        self.dirs.iter().any(|dir| dir.kind == kind)
    }

    fn file(&self, kind: Kind, file: &str) -> Option<PathBuf> {
        self.dirs.iter().find(|dir| dir.kind == kind).map(|dir| dir.path.join(file))
    }

    fn limit(&mut self, spec: &Spec) {
        for dir in &mut self.dirs {
            for (limit, most) in limits(spec) {
                let file = dir.kind.file_of(limit).map(|file| dir.path.join(file));
                // Version 2 has the file only where its controller is enabled: then version 1 has it, or nobody.
                if file.is_some_and(|file| put(&file, &most.to_string()).is_ok()) {
                    dir.enforces.push(limit);
                }
            }
        }
    }

    /// The limits of the spec that bind nobody in this leaf.
    pub(crate) fn unenforced(&self, spec: &Spec) -> Vec<Limit> {
        let enforced = |limit| self.dirs.iter().any(|dir| dir.enforces.contains(&limit));
        limits(spec).map(|(limit, _)| limit).filter(|limit| !enforced(*limit)).collect()
    }

    /// Puts a process into the leaf. Directories that refuse it are given up.
    pub(crate) fn join(&mut self, pid: u32) {
        self.dirs.retain(|dir| {
            let joined = put(&dir.path.join("cgroup.procs"), &pid.to_string()).is_ok();
            if !joined {
                fs::remove_dir(&dir.path).ok();
            }
            joined
        });
    }

    /// The pids of all processes in it, of sub-groups too. Dead ones are not listed.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        for dir in &self.dirs {
            collect_pids(&dir.path, DEPTH_MAX, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Whether the kernel itself says that something lives in it, seen or not.
    pub(crate) fn is_populated(&self) -> bool {
        let events = self.file(Kind::Unified, "cgroup.events");
        events.and_then(|path| counter(&path, "populated")).is_some_and(|count| count > 0)
    }

    /// Whether `kill` reaches every process in it at one stroke, so that none can fork itself away.
    pub(crate) fn kill(&self) -> bool {
        self.file(Kind::Unified, "cgroup.kill").is_some_and(|path| put(&path, "1").is_ok())
    }

    /// Whether [`Leaf::freeze`] can do anything.
    pub(crate) fn has_freezer(&self) -> bool {
        self.has(Kind::Unified) || self.has(Kind::Freezer)
    }

    /// Stops every process in it from running; a signal sent now waits for [`Leaf::thaw`], save the version 2 kill.
    pub(crate) fn freeze(&self) {
        if let Some(path) = self.file(Kind::Freezer, "freezer.state") {
            put(&path, "FROZEN").ok();
        }
        if let Some(path) = self.file(Kind::Unified, "cgroup.freeze") {
            put(&path, "1").ok();
        }
    }

    /// Lets every process in it run: a frozen one, by whomever, obeys no signal but the version 2 kill.
    pub(crate) fn thaw(&self) {
        if let Some(path) = self.file(Kind::Freezer, "freezer.state") {
            put(&path, "THAWED").ok();
        }
        if let Some(path) = self.file(Kind::Unified, "cgroup.freeze") {
            put(&path, "0").ok();
        }
    }

    /// Whether its processes are stopped from running, by whomever.
    pub(crate) fn is_frozen(&self) -> bool {
        let unified = self.file(Kind::Unified, "cgroup.events");
        let unified = unified.and_then(|path| counter(&path, "frozen")).is_some_and(|it| it > 0);
        let freezer = self.file(Kind::Freezer, "freezer.state");
        let freezer = freezer.and_then(|path| fs::read_to_string(path).ok());
        unified || freezer.is_some_and(|state| state.trim() != "THAWED")
    }

    /// How often the kernel killed in it for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let files = [(Kind::Unified, "memory.events"), (Kind::Memory, "memory.oom_control")];
        files
            .into_iter()
            .filter_map(|(kind, file)| counter(&self.file(kind, file)?, "oom_kill"))
            .max()
            .unwrap_or(0)
    }

    /// CPU time used in it, in milliseconds.
    pub(crate) fn cpu_ms(&self) -> Option<u64> {
        let unified = self.file(Kind::Unified, "cpu.stat");
        let unified = unified.and_then(|path| counter(&path, "usage_usec")).map(|us| us / 1000);
        unified.or_else(|| Some(number(&self.file(Kind::CpuAcct, "cpuacct.usage")?)? / 1_000_000))
    }

    /// The most memory it ever used, in bytes.
    pub(crate) fn peak_memory_bytes(&self) -> Option<u64> {
        let files = [(Kind::Unified, "memory.peak"), (Kind::Memory, "memory.max_usage_in_bytes")];
        files.into_iter().find_map(|(kind, file)| number(&self.file(kind, file)?))
    }

    /// Removes the directories. The kernel refuses while anything lives in one; true when all are gone.
    pub(crate) fn remove(&mut self) -> bool {
        self.dirs.retain(|dir| !remove_below(&dir.path, DEPTH_MAX));
        self.dirs.is_empty()
    }
}

fn make(kind: Kind, base: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if kind == Kind::Unified {
        // From the top down, each step on its own: what is not offered here is not had below.
        let mut groups: Vec<&Path> =
            path.ancestors().skip(1).take_while(|group| group.starts_with(base)).collect();
        groups.reverse();
        for group in groups {
            for controller in ["+memory", "+pids"] {
                put(&group.join("cgroup.subtree_control"), controller).ok();
            }
        }
    }
    Ok(())
}

fn collect_pids(dir: &Path, depth: u32, pids: &mut Vec<u32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // A process of a foreign pid namespace is listed as 0.
    let listed = text.lines().filter_map(|line| line.parse::<u32>().ok());
    pids.extend(listed.filter(|pid| *pid != 0));
    let Some(depth) = depth.checked_sub(1) else { return };
    for group in sub_groups(dir) {
        collect_pids(&group, depth, pids);
    }
}

fn remove_below(dir: &Path, depth: u32) -> bool {
    if let Some(depth) = depth.checked_sub(1) {
        for group in sub_groups(dir) {
            remove_below(&group, depth);
        }
    }
    match fs::remove_dir(dir) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn sub_groups(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path())
}

fn put(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    // Never created: a missing file means that the kernel does not offer it.
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn counter(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// The directories of this process's own groups, version 2 first.
fn own_groups(mounts: &str, own: &str) -> Vec<(Kind, PathBuf)> {
    let wanted = [
        (Kind::Unified, ""),
        (Kind::Freezer, "freezer"),
        (Kind::Memory, "memory"),
        (Kind::Pids, "pids"),
        (Kind::CpuAcct, "cpuacct"),
    ];
    let find = |(kind, controller): (Kind, &str)| {
        let group = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|one| one == controller).then_some(path)
        })?;
        let dir = mounts.lines().find_map(|line| mounted(line, controller, group))?;
        // A kernel before 5.14 has version 2 without a kill: its freezer alone would not do.
        (kind != Kind::Unified || has_kill(&dir)).then_some((kind, dir))
    };
    wanted.into_iter().filter_map(find).collect()
}

/// The file is in every group but the root, which has neither it nor a way to be killed.
fn has_kill(dir: &Path) -> bool {
    let mut groups = sub_groups(dir);
    dir.join("cgroup.kill").exists()
        || !dir.join("cgroup.type").exists()
            && groups.next().is_none_or(|group| group.join("cgroup.kill").exists())
}

/// Where a line of mountinfo shows `group`, if it mounts that controller's hierarchy (version 2: the empty name).
fn mounted(line: &str, controller: &str, group: &str) -> Option<PathBuf> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ');
    let (root, point) = (head.nth(3)?, head.next()?);
    let mut tail = tail.split(' ');
    let (kind, options) = (tail.next()?, tail.nth(1).unwrap_or_default());
    let right = match controller {
        "" => kind == "cgroup2",
        name => kind == "cgroup" && options.split(',').any(|option| option == name),
    };
    // Only what is below the mount's root can be reached through it.
    let below = if root == "/" { group } else { group.strip_prefix(root)? };
    (right && !point.contains('\\')).then(|| Path::new(point).join(below.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
39 31 0:36 /pod /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /nowhere/unified rw,relatime - cgroup2 cgroup2 rw
";
    const OWN: &str =
        "9:name=systemd:/\n8:pids:/pod/x\n6:freezer:/\n4:memory:/a/b\n2:cpu,cpuacct:/c\n0::/u\n";

    #[test]
    fn own_groups_are_found_in_a_hybrid_machine() {
        let expected = [
            (Kind::Unified, "/nowhere/unified/u"),
            (Kind::Freezer, "/sys/fs/cgroup/freezer/"),
            (Kind::Memory, "/sys/fs/cgroup/memory/a/b"),
            (Kind::Pids, "/sys/fs/cgroup/pids/x"),
            (Kind::CpuAcct, "/sys/fs/cgroup/cpu,cpuacct/c"),
        ];
        let expected: Vec<_> = expected.map(|(kind, dir)| (kind, PathBuf::from(dir))).into();
        assert_eq!(own_groups(MOUNTS, OWN), expected);
    }

    #[test]
    fn a_group_outside_the_mounted_root_is_not_reached() {
        assert_eq!(mounted(MOUNTS.lines().nth(4).expect("five lines"), "pids", "/other"), None);
    }

    #[test]
    fn nonsense_gives_no_groups() {
        assert_eq!(own_groups("a - b\n\n - \nx", "0:\n::\n:"), vec![]);
    }

    /// A leaf whose files are plain ones: what would be written to a kernel that has both versions.
    fn hybrid(name: &str) -> (Leaf, PathBuf) {
        let root = std::env::temp_dir().join(format!("outlive-{name}-{}", std::process::id()));
        let dirs = [("cgroup.freeze", Kind::Unified), ("freezer.state", Kind::Freezer)];
        let dirs = dirs.map(|(file, kind)| {
            let path = root.join(file).with_extension("d");
            fs::create_dir_all(&path).expect("made");
            fs::write(path.join(file), "").expect("written");
            Dir { path, kind, enforces: Vec::new() }
        });
        (Leaf { dirs: dirs.into() }, root)
    }

    #[test]
    fn a_hybrid_leaf_is_frozen_and_thawed_in_both_versions() {
        let (leaf, root) = hybrid("hybrid");
        let states = || {
            let read = |(kind, file)| fs::read_to_string(leaf.file(kind, file).expect("there"));
            [(Kind::Unified, "cgroup.freeze"), (Kind::Freezer, "freezer.state")]
                .map(|at| read(at).expect("reads"))
        };
        leaf.freeze();
        let frozen = states();
        leaf.thaw();
        // Each write is one to the kernel; in a plain file it goes over the one before.
        let thawed = states();
        fs::remove_dir_all(root).expect("removed");
        assert_eq!(
            (frozen, thawed),
            (["1", "FROZEN"].map(String::from), ["0", "THAWED"].map(String::from))
        );
    }

    #[test]
    fn a_leaf_without_directories_answers_nothing_and_harms_nobody() {
        let mut leaf = Leaf::default();
        assert_eq!((leaf.pids(), leaf.kill(), leaf.is_populated()), (vec![], false, false));
        assert_eq!((leaf.oom_kills(), leaf.cpu_ms(), leaf.remove()), (0, None, true));
    }
}
