//! Rules on what others wrote: how much of it, from where, under which licence.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::source;
use crate::tree::{File, find};

/// Packages in Cargo.lock. Raise it knowingly: each of them is code that we answer for.
const PACKAGES_MAX: usize = 220;

/// The default registry, as Cargo.lock names it.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Cargo.lock stays small, and everything in it comes from the default registry.
pub(crate) fn lock(files: &[File]) -> Vec<String> {
    let Some(lock) = find(files, "Cargo.lock") else {
        return vec!["Cargo.lock is missing".to_owned()];
    };
    let packages = lock.text.lines().filter(|line| *line == "[[package]]").count();
    let mut complaints = Vec::new();
    if packages > PACKAGES_MAX {
        complaints.push(format!("Cargo.lock: {packages} packages, at most {PACKAGES_MAX}"));
    }
    for line in lock.text.lines().filter_map(|line| line.strip_prefix("source = ")) {
        if line.trim_matches('"') != REGISTRY {
            complaints.push(format!("Cargo.lock: a package from {line}"));
        }
    }
    complaints
}

/// The licences that deny.toml accepts: one list for both.
pub(crate) fn allowed(files: &[File]) -> BTreeSet<String> {
    let text = find(files, "deny.toml").map(|file| file.text.as_str()).unwrap_or_default();
    let deny: toml::Table = text.parse().expect("deny.toml is TOML");
    let list = deny.get("licenses").and_then(|table| table.get("allow")?.as_array());
    list.into_iter().flatten().filter_map(toml::Value::as_str).map(str::to_owned).collect()
}

/// What cargo knows of all packages that are built for this machine.
pub(crate) fn metadata() -> Value {
    let cargo = |args: &[&str]| {
        let output = Command::new(env!("CARGO")).args(args).current_dir(source::root()).output();
        let output = output.expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let version = String::from_utf8(cargo(&["-vV"])).expect("cargo speaks UTF-8");
    let host =
        version.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo names its host");
    // Only this machine's packages: the others need not have been fetched.
    let args =
        ["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", host];
    serde_json::from_slice(&cargo(&args)).expect("cargo writes JSON")
}

/// Every package can be used under a licence of the list.
pub(crate) fn licences(metadata: &Value, allowed: &BTreeSet<String>) -> Vec<String> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut complaints = Vec::new();
    if packages.is_empty() {
        complaints.push("cargo metadata names no package".to_owned());
    }
    for package in packages {
        let licence = package["license"].as_str().unwrap_or("none");
        if !accepted(licence, allowed) {
            let name = package["name"].as_str().unwrap_or("a package");
            complaints.push(format!("{name}: its licence {licence} is not in deny.toml"));
        }
    }
    complaints
}

/// Evaluates an SPDX expression; an old-fashioned `/` means OR.
fn accepted(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { rest: &tokens, allowed };
    parser.any_of() && parser.rest.is_empty()
}

struct Parser<'a> {
    rest: &'a [&'a str],
    allowed: &'a BTreeSet<String>,
}

impl Parser<'_> {
    fn any_of(&mut self) -> bool {
        let mut good = self.all_of();
        while self.take("OR") {
            good |= self.all_of();
        }
        good
    }

    fn all_of(&mut self) -> bool {
        let mut good = self.one();
        while self.take("AND") {
            good &= self.one();
        }
        good
    }

    fn one(&mut self) -> bool {
        if self.take("(") {
            let good = self.any_of();
            return self.take(")") && good;
        }
        let mut name = self.next();
        if self.take("WITH") {
            name = format!("{name} WITH {}", self.next());
        }
        self.allowed.contains(&name)
    }

    fn take(&mut self, wanted: &str) -> bool {
        let found = self.rest.first() == Some(&wanted);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn next(&mut self) -> String {
        let Some((first, rest)) = self.rest.split_first() else { return String::new() };
        self.rest = rest;
        (*first).to_owned()
    }
}

mod tests {
    use super::*;

    #[test]
    fn an_expression_is_accepted_when_we_can_choose_what_we_accept() {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"];
        let allowed: BTreeSet<String> = allowed.map(str::to_owned).into();
        for good in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/GPL-3.0",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        ] {
            assert!(accepted(good, &allowed), "{good}");
        }
        for bad in ["", "none", "GPL-3.0", "MIT AND GPL-3.0", "MIT WITH odd", "(MIT", "MIT MIT"] {
            assert!(!accepted(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn a_package_without_an_accepted_licence_is_named() {
        let package = |licence: &str| serde_json::json!({"name": "a", "license": licence});
        let metadata =
            serde_json::json!({"packages": [package("MIT"), package("BUSL-1.1"), {"name": "b"}]});
        assert_eq!(licences(&metadata, &BTreeSet::from(["MIT".to_owned()])).len(), 2);
        assert_eq!(licences(&serde_json::json!({}), &BTreeSet::new()).len(), 1);
    }

    #[test]
    fn a_long_lock_and_a_foreign_source_are_found() {
        let text = "[[package]]\nsource = \"git+https://example.com/a\"\n".to_owned()
            + &"[[package]]\n".repeat(220);
        assert_eq!(lock(&[File::new("Cargo.lock", &text)]).len(), 2);
        assert_eq!(lock(&[]).len(), 1);
    }
}
