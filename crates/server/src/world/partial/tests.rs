//! A directory that exists is complete, whatever was killed.

use std::fs;

use super::*;

fn names(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names
}

fn room() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let room = tempfile::tempdir().expect("a temp dir");
    let (repos, trash) = (room.path().join("repos"), room.path().join("trash"));
    fs::create_dir(&repos).unwrap();
    fs::create_dir(&trash).unwrap();
    (room, repos, trash)
}

#[test]
fn only_parts_of_the_very_same_name_are_cleared() {
    let (_room, repos, trash) = room();
    let digits = "0123456789abcdef";
    let others = [
        "a".to_owned(),
        // Being cloned at this moment: the repo named `a.partial-b`.
        format!(".a.partial-b.partial-{digits}"),
        format!("a.partial-{digits}"),
        format!(".aa.partial-{digits}"),
    ];
    for name in
        others.iter().chain([&format!(".b.partial-{digits}"), &format!(".a.partial-{digits}")])
    {
        fs::create_dir_all(repos.join(name).join("inner")).unwrap();
    }
    clear(&repos.join("a"), &trash).unwrap();
    let mut left: Vec<OsString> = others.iter().map(OsString::from).collect();
    left.push(format!(".b.partial-{digits}").into());
    left.sort();
    assert_eq!(names(&repos), left);
    assert!(names(&trash).is_empty());
}

#[test]
fn a_failed_build_leaves_nothing_and_an_occupied_place_is_not_replaced() {
    let (_room, repos, trash) = room();
    let dest = repos.join("a");
    let failed: Result<(), FileError> = build(&dest, &trash, |partial| {
        fs::create_dir(partial).unwrap();
        Err(FileError::on("copy", "x")(std::io::Error::other("planted")))
    });
    assert_eq!(failed.unwrap_err().to_string(), "cannot copy x");
    assert!(names(&repos).is_empty() && names(&trash).is_empty());

    fs::create_dir(&dest).unwrap();
    let refused: Result<(), FileError> = build(&dest, &trash, |partial| {
        fs::create_dir(partial).map_err(FileError::on("create", partial))
    });
    assert!(refused.unwrap_err().to_string().starts_with("cannot put in place"));
    assert_eq!(names(&repos), ["a"]);
}
