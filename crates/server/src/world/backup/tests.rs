//! The archive, unpacked again with the system's own tar.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use super::*;

/// Packs what is in `from` by `pack`, and unpacks it with the system's own tar.
fn unpacked(
    from: &Path,
    pack: impl FnOnce(&mut Archive<&mut Vec<u8>>) -> io::Result<()>,
) -> (tempfile::TempDir, Vec<String>) {
    let mut bytes = Vec::new();
    let mut archive = Archive::new(from, &mut bytes).expect("begun");
    pack(&mut archive).expect("packed");
    let left_out = archive.left_out().to_vec();
    archive.finish().expect("finished");
    let to = tempfile::tempdir().expect("a directory");
    fs::write(to.path().join("x.tar"), &bytes).expect("written");
    let mut tar = Command::new("tar");
    tar.args(["-xpf", "x.tar"]).current_dir(to.path());
    let output = tar.output().expect("tar runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (to, left_out)
}

#[test]
fn a_tree_comes_out_as_it_went_in_and_what_does_not_is_told() {
    let from = tempfile::tempdir().expect("a directory");
    let root = from.path();
    let deep: PathBuf = ["t", &"long-".repeat(40), &"name-".repeat(40)].iter().collect();
    fs::create_dir_all(root.join(&deep)).expect("made");
    fs::create_dir(root.join("t/empty")).expect("made");
    fs::write(root.join(&deep).join("file"), "text").expect("written");
    symlink("nowhere/at all", root.join("t/link")).expect("a link");
    assert!(Command::new("mkfifo").arg(root.join("t/fifo")).status().expect("runs").success());
    let (to, left_out) = unpacked(root, |archive| archive.tree(Path::new("t")));
    assert_eq!(fs::read(to.path().join(&deep).join("file")).expect("there"), b"text");
    assert_eq!(
        fs::read_link(to.path().join("t/link")).expect("there"),
        Path::new("nowhere/at all")
    );
    assert!(to.path().join("t/empty").is_dir() && !to.path().join("t/fifo").exists());
    assert_eq!(left_out.len(), 1, "{left_out:?}");
    assert!(left_out[0].starts_with("t/fifo: "), "{left_out:?}");
}

#[test]
fn no_link_leads_out_and_what_is_not_there_is_passed_over() {
    let from = tempfile::tempdir().expect("a directory");
    let root = from.path().join("root");
    fs::create_dir(&root).expect("made");
    fs::create_dir(from.path().join("other")).expect("made");
    fs::write(from.path().join("other/secret"), "x").expect("written");
    symlink("../other", root.join("way")).expect("a link");
    symlink("../other/secret", root.join("file")).expect("a link");
    let (to, left_out) = unpacked(&root, |archive| {
        archive.file(Path::new("way/secret"), u64::MAX)?;
        archive.file(Path::new("file"), u64::MAX)?;
        assert_eq!(archive.directory(Path::new("way"))?, None);
        archive.file(Path::new("nothing"), u64::MAX)?;
        archive.tree(Path::new("nothing"))
    });
    assert_eq!(fs::read_dir(to.path()).expect("there").count(), 1, "the archive alone");
    assert_eq!(left_out.len(), 3, "{left_out:?}");
}

#[test]
fn a_file_has_the_length_that_was_promised_whatever_becomes_of_it() {
    let from = tempfile::tempdir().expect("a directory");
    let path = from.path().join("f");
    fs::write(&path, vec![b'a'; 100_000]).expect("written");
    let (to, left_out) = unpacked(from.path(), |archive| {
        archive.file(Path::new("f"), 70_000)?;
        // It shrinks between the look at its length and the reading of it.
        let file = File::open(&path)?;
        let metadata = file.metadata()?;
        fs::write(&path, "short")?;
        archive.promised(&file, Path::new("shrunk"), &metadata, 50_000)
    });
    assert_eq!(fs::read(to.path().join("f")).expect("there"), vec![b'a'; 70_000]);
    let shrunk = fs::read(to.path().join("shrunk")).expect("there");
    assert_eq!((shrunk.len(), &shrunk[..6]), (50_000, &b"short\0"[..]));
    assert!(left_out[0].contains("its last 49995 bytes are zeros here"), "{left_out:?}");
}
