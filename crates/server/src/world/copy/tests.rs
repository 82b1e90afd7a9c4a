//! The copier on real trees: everything that a directory can hold, and reflinks on real file systems.

use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};

use super::*;

fn room() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temp dir")
}

/// Everything that a faithful copy must keep of an entry.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    path: PathBuf,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    content: Vec<u8>,
}

/// All entries below `top`, and itself. Needs no permission that root or the owner of open folders lacks.
pub(crate) fn look(top: &Path) -> Vec<impl PartialEq + Ord + std::fmt::Debug + use<>> {
    let (mut seen, mut folders) = (Vec::new(), vec![top.to_owned()]);
    while let Some(path) = folders.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_vec()
        } else if meta.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        if meta.is_dir() {
            folders.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        seen.push(Seen {
            path: path.strip_prefix(top).unwrap().to_owned(),
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            content,
        });
    }
    seen.sort();
    seen
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A tree with one of everything.
fn zoo(top: &Path) {
    fs::create_dir_all(top.join("dir/empty")).unwrap();
    fs::write(top.join("dir/run"), "#!/bin/sh\n").unwrap();
    chmod(&top.join("dir/run"), 0o755);
    fs::write(top.join("setuid"), "x").unwrap();
    chmod(&top.join("setuid"), 0o4750);
    fs::write(top.join("empty"), "").unwrap();
    fs::write(top.join("read-only"), "r").unwrap();
    chmod(&top.join("read-only"), 0o400);
    symlink("dir/run", top.join("relative")).unwrap();
    symlink("/etc/hostname", top.join("absolute")).unwrap();
    symlink("nowhere/at/all", top.join("dangling")).unwrap();
    symlink("..", top.join("dir/up")).unwrap();
    fs::write(top.join("line\nbreak"), "n").unwrap();
    fs::write(top.join(OsStr::from_bytes(b"not-utf8-\xff\xfe")), "u").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, top.join("fifo"), Mode::RWXU).unwrap();
    fs::create_dir(top.join("locked")).unwrap();
    fs::write(top.join("locked/inside"), "i").unwrap();
    let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
    let old = Timestamps { last_access: old, last_modification: old };
    for path in ["dir/run", "relative", "dangling", "locked", "fifo", "dir/empty", "dir", ""] {
        let path = top.join(path);
        rustix::fs::utimensat(rustix::fs::CWD, path, &old, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    chmod(&top.join("locked"), 0o500);
}

// PRODUCT: the fallback copy of the original dropped symlinks.
#[test]
fn a_copy_keeps_symlinks_modes_times_and_names_of_any_bytes() {
    let room = room();
    let (from, to) = (room.path().join("from"), room.path().join("to"));
    zoo(&from);
    let copied = copy_tree(&from, &to).unwrap();
    assert_eq!(look(&to), look(&from));
    assert_eq!((copied.files, copied.skipped), (7, 0));
    assert!(fs::symlink_metadata(to.join("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::symlink_metadata(to.join("dangling")).unwrap().is_symlink());
    for top in [&from, &to] {
        chmod(&top.join("locked"), 0o700);
    }
}

#[test]
fn owners_are_kept_where_we_may_and_otherwise_a_set_user_bit_is_dropped() {
    let room = room();
    let (from, to) = (room.path().join("from"), room.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("tool"), "x").unwrap();
    if !rustix::process::geteuid().is_root() {
        println!("not covered without root: owners kept");
        let (from, to) = (File::open(from.join("tool")).unwrap(), File::create(&to).unwrap());
        let mut stat = rustix::fs::fstat(&from).unwrap();
        (stat.st_uid, stat.st_mode) = (0, 0o6755);
        dress(&to, &from, &stat).unwrap();
        assert_eq!(to.metadata().unwrap().mode() & 0o7777, 0o755);
        return;
    }
    println!("not covered as root: set-user bits dropped");
    std::os::unix::fs::lchown(from.join("tool"), Some(1234), Some(2345)).unwrap();
    symlink("tool", from.join("link")).unwrap();
    std::os::unix::fs::lchown(from.join("link"), Some(1234), Some(2345)).unwrap();
    chmod(&from.join("tool"), 0o6755);
    copy_tree(&from, &to).unwrap();
    assert_eq!(look(&to), look(&from));
}

#[test]
fn attributes_holes_and_hard_links_are_kept() {
    let room = room();
    let (from, to) = (room.path().join("from"), room.path().join("to"));
    fs::create_dir(&from).unwrap();
    let sparse = File::create(from.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"middle", 8 << 20).unwrap();
    sparse.set_len(16 << 20).unwrap();
    fs::write(from.join("one"), "linked").unwrap();
    fs::create_dir(from.join("dir")).unwrap();
    fs::hard_link(from.join("one"), from.join("dir/two")).unwrap();
    let one = File::open(from.join("one")).unwrap();
    let kept = rustix::fs::fsetxattr(&one, "user.note", b"kept", XattrFlags::empty());
    copy_tree(&from, &to).unwrap();

    assert_eq!(look(&to), look(&from));
    let inode = |path: &str| fs::metadata(to.join(path)).unwrap().ino();
    assert_eq!(inode("one"), inode("dir/two"));
    assert_ne!(inode("one"), fs::metadata(from.join("one")).unwrap().ino());
    let blocks = fs::metadata(to.join("sparse")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
    if kept.is_err() {
        println!("not covered on this file system: user attributes");
        return;
    }
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(to.join("one"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"kept");
}

#[test]
fn a_change_in_the_copy_is_not_seen_in_the_source() {
    let room = room();
    let (from, to) = (room.path().join("from"), room.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), "before").unwrap();
    copy_tree(&from, &to).unwrap();
    fs::write(to.join("file"), "after!").unwrap();
    assert_eq!(fs::read(from.join("file")).unwrap(), b"before");
}

#[test]
fn sockets_are_skipped_and_counted() {
    let room = room();
    let (from, to) = (room.path().join("from"), room.path().join("to"));
    fs::create_dir(&from).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    fs::write(from.join("file"), "x").unwrap();
    let copied = copy_tree(&from, &to).unwrap();
    assert_eq!((copied.files, copied.skipped), (1, 1));
    assert!(!to.join("socket").exists());
}

#[test]
fn a_deep_tree_is_copied_and_a_bottomless_one_is_refused() {
    for (depth, fine) in [(DEPTH_MAX - 1, true), (DEPTH_MAX, false)] {
        let room = room();
        let (from, to) = (room.path().join("from"), room.path().join("to"));
        fs::create_dir_all(from.join("d/".repeat(depth))).unwrap();
        let copied = copy_tree(&from, &to);
        assert_eq!(copied.is_ok(), fine, "{depth}: {copied:?}");
        if fine {
            assert!(to.join("d/".repeat(depth)).is_dir());
        } else {
            assert!(matches!(copied, Err(CopyError::TooDeep(_))));
        }
    }
}

#[test]
fn locks_and_links_of_the_original_repository_stay_behind() {
    let room = room();
    let (from, to) = (room.path().join("from"), room.path().join("to"));
    fs::create_dir_all(from.join(".git/worktrees/other")).unwrap();
    fs::create_dir_all(from.join("sub/.git/worktrees")).unwrap();
    for name in
        [".git/index.lock", ".git/HEAD", ".git/HEAD.lock", ".git/outlive.json", "index.lock"]
    {
        fs::write(from.join(name), "x").unwrap();
    }
    copy_tree(&from, &to).unwrap();
    let kept: Vec<_> =
        fs::read_dir(to.join(".git")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(kept, ["HEAD"]);
    assert!(to.join("index.lock").exists() && to.join("sub/.git/worktrees").exists());
}

#[test]
fn an_existing_destination_is_refused_with_its_path() {
    let room = room();
    let to = room.path().join("to");
    fs::create_dir(&to).unwrap();
    let refused = copy_tree(room.path(), &to).unwrap_err();
    assert_eq!(refused.to_string(), format!("cannot create {}", to.display()));
    let missing = copy_tree(&room.path().join("missing"), &room.path().join("x")).unwrap_err();
    assert!(missing.to_string().contains("missing"), "{missing}");
}

#[test]
fn only_what_vanishes_in_the_source_is_skipped_and_never_a_copy_that_is_taken_away() {
    for entry in ["file", "link", "dir", "fifo"] {
        let outer = room();
        let (from, to) = (outer.path().join("from"), outer.path().join("to"));
        fs::create_dir_all(&from).unwrap();
        match entry {
            "file" => fs::write(from.join(entry), "x").unwrap(),
            "link" => symlink("x", from.join(entry)).unwrap(),
            "dir" => fs::create_dir(from.join(entry)).unwrap(),
            _ => rustix::fs::mkfifoat(rustix::fs::CWD, from.join(entry), Mode::RWXU).unwrap(),
        }
        fs::create_dir(&to).unwrap();
        let open = |path: &Path| rustix::fs::open(path, DIRECTORY, Mode::empty()).unwrap();
        let walk = |names: Vec<CString>| {
            let stat = rustix::fs::stat(&from).unwrap();
            let done = Copied { made_by: MadeBy::Copy, files: 0, bytes: 0, skipped: 0 };
            let (root, path, links) = (open(&to), PathBuf::new(), HashMap::new());
            let mut copier =
                Copier { source: &from, root, path, reflink: true, shared: 0, links, done };
            let folder =
                Folder { from: open(&from), to: open(&to), stat, names, place: Place::Top };
            fs::remove_dir(&to).unwrap();
            copier.walk(folder).map(|()| copier.done.skipped)
        };
        assert_eq!(walk(vec![c"vanished".to_owned()]).unwrap(), 1);
        fs::create_dir(&to).unwrap();
        let taken = walk(vec![CString::new(entry).unwrap()]);
        assert!(matches!(taken, Err(CopyError::File(_))), "{entry}: {taken:?}");
    }
}

#[test]
fn a_part_of_the_repository_that_vanishes_is_an_error_but_a_passing_file_of_git_is_not() {
    let outer = room();
    let (root, path, links) = (
        rustix::fs::open(outer.path(), DIRECTORY, Mode::empty()).unwrap(),
        PathBuf::new(),
        HashMap::new(),
    );
    let done = Copied { made_by: MadeBy::Copy, files: 0, bytes: 0, skipped: 0 };
    let mut copier =
        Copier { source: outer.path(), root, path, reflink: true, shared: 0, links, done };
    for place in [Place::Git, Place::InGit] {
        let gone = copier.vanished(place, c"pack-1.pack");
        assert!(matches!(gone, Err(CopyError::RepositoryChanged(_))));
        copier.vanished(place, c"tmp_obj_x").unwrap();
        copier.vanished(place, c"packed-refs.lock").unwrap();
    }
    copier.vanished(Place::Tree, c"pack-1.pack").unwrap();
    assert_eq!(copier.done.skipped, 5);
}
