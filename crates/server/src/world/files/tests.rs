//! Trash and containment on real directories, symbolic links included.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn room() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temp dir")
}

fn listing(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn trash_moves_by_rename_and_two_of_one_name_do_not_meet() {
    let room = room();
    let trash_dir = room.path().join("trash");
    fs::create_dir(&trash_dir).unwrap();
    let mut places = Vec::new();
    for n in 0..2 {
        let thing = room.path().join("thing");
        fs::create_dir(&thing).unwrap();
        fs::write(thing.join("n"), n.to_string()).unwrap();
        places.push(trash(&thing, &trash_dir).unwrap());
        assert!(!thing.exists());
    }
    assert_eq!(fs::read(places[0].join("n")).unwrap(), b"0");
    assert_eq!(fs::read(places[1].join("n")).unwrap(), b"1");
    let long = room.path().join("x".repeat(255));
    fs::write(&long, "").unwrap();
    assert!(trash(&long, &trash_dir).unwrap().exists());
    let missing = trash(&room.path().join("missing"), &trash_dir).unwrap_err();
    assert!(missing.to_string().contains("missing"), "{missing}");
}

// Proves I12: only what is in the trash is deleted.
#[test]
fn emptying_removes_everything_in_the_trash_and_never_follows_a_symlink() {
    let room = room();
    let (trash_dir, outside) = (room.path().join("trash"), room.path().join("outside"));
    fs::create_dir_all(outside.join("inner")).unwrap();
    fs::write(outside.join("inner/precious"), "precious").unwrap();
    let inner = trash_dir.join("a/b/c");
    fs::create_dir_all(&inner).unwrap();
    symlink(&outside, inner.join("absolute")).unwrap();
    symlink("../../../../outside", inner.join("relative")).unwrap();
    symlink(&outside, trash_dir.join("top")).unwrap();
    fs::hard_link(outside.join("inner/precious"), inner.join("linked")).unwrap();
    fs::write(inner.join("4k"), vec![1; 4096]).unwrap();
    for dir in [&inner, &trash_dir.join("a")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o500)).unwrap();
    }
    fs::set_permissions(trash_dir.join("a/b"), fs::Permissions::from_mode(0o0)).unwrap();

    let emptied = empty_trash(&trash_dir).unwrap();

    assert!(emptied.failed.is_empty(), "{:?}", emptied.failed);
    assert_eq!(listing(&trash_dir), Vec::<OsString>::new());
    assert_eq!(fs::read(outside.join("inner/precious")).unwrap(), b"precious");
    assert_eq!((emptied.entries, emptied.bytes), (8, 4096));
}

#[test]
fn emptying_does_not_need_a_descriptor_or_a_call_frame_per_level() {
    let room = room();
    let mut at = open_directory(room.path()).unwrap();
    // Far more than descriptors (1024) and than a path can name (4096 bytes).
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "deeper", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "deeper", DIRECTORY, Mode::empty()).unwrap();
    }
    let emptied = empty_trash(room.path()).unwrap();
    assert!(emptied.failed.is_empty(), "{:?}", emptied.failed);
    assert_eq!(emptied.entries, 3000);
}

#[test]
fn deleting_one_trashed_thing_leaves_the_others() {
    let room = room();
    fs::create_dir_all(room.path().join("one/x")).unwrap();
    fs::create_dir_all(room.path().join("other/x")).unwrap();
    let emptied = delete_trashed(&room.path().join("one")).unwrap();
    assert!(emptied.failed.is_empty(), "{:?}", emptied.failed);
    assert_eq!(listing(room.path()), ["other"]);
}

#[test]
fn a_path_stays_in_its_folder_or_is_refused() {
    let outer = room();
    let root = outer.path().join("root");
    fs::create_dir_all(root.join("dir")).unwrap();
    fs::write(outer.path().join("secret"), "secret").unwrap();
    fs::write(root.join("dir/file"), "file").unwrap();
    symlink("dir/file", root.join("inside")).unwrap();
    symlink("../secret", root.join("out")).unwrap();
    symlink(outer.path(), root.join("absolute")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();

    assert_eq!(contained(&root, Path::new("dir/file")).unwrap(), root.join("dir/file"));
    let mut text = String::new();
    let mut file = open_contained(&root, Path::new("inside")).unwrap();
    io::Read::read_to_string(&mut file, &mut text).unwrap();
    assert_eq!(text, "file");
    for path in ["", "/etc/passwd", "..", "../secret", "dir/../../secret", "dir/.."] {
        let refused = contained(&root, Path::new(path));
        assert!(matches!(refused, Err(Escape::NotRelative(_))), "{path}: {refused:?}");
    }
    for path in ["out", "absolute", "absolute/secret", "magic/etc/passwd"] {
        let refused = open_contained(&root, Path::new(path));
        assert!(matches!(refused, Err(Escape::LeadsOut(_))), "{path}: {refused:?}");
    }
    let missing = contained(&root, Path::new("missing"));
    assert!(matches!(missing, Err(Escape::File(_))), "{missing:?}");
}

#[test]
fn without_openat2_every_symlink_is_refused() {
    let room = room();
    fs::create_dir(room.path().join("dir")).unwrap();
    fs::write(room.path().join("dir/file"), "").unwrap();
    symlink("dir", room.path().join("link")).unwrap();
    let open = |path: &str, flags| {
        open_stepwise(open_directory(room.path()).unwrap(), Path::new(path), flags)
    };
    open("dir/file", OFlags::RDONLY).unwrap();
    for flags in [OFlags::RDONLY, OFlags::PATH] {
        assert!(matches!(open("link/file", flags), Err(Errno::NOTDIR | Errno::LOOP)));
        assert!(matches!(open("link", flags), Err(Errno::LOOP)));
    }
}
