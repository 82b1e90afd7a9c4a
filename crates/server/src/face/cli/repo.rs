//! `outlive repo`: the repositories that jobs can work on.

use std::io::Write as _;
use std::path::Path;

use clap::Subcommand;
use serde_json::{Value, json};

use super::failure::Failure;
use super::follow::Follower;
use super::text::{ago, at, clean, items, table};
use super::{Context, SUCCESS, Status, note, print_json};
use crate::clock;
use crate::face::client::escape;

/// Repositories that jobs can work on
#[derive(Debug, Subcommand)]
pub(super) enum Repo {
    /// Register a repository, by path or URL, and wait until it is cloned
    #[command(after_help = "\
Examples:
  outlive repo add web ~/src/web
  outlive repo add web https://example.com/web.git --branch main")]
    Add {
        /// Its name here
        name: String,
        /// Where it is: a path on the server's machine, or a git URL
        source: String,
        /// Which branch [default: the one that is checked out there]
        #[arg(long)]
        branch: Option<String>,
    },
    /// List them
    #[command(visible_alias = "ls")]
    List {
        /// Print the server's JSON
        #[arg(long)]
        json: bool,
    },
    /// Report on one
    Show {
        /// Its name
        name: String,
        /// Print the server's JSON
        #[arg(long)]
        json: bool,
    },
    /// Make one usable again whose records are lost, or whose clone failed
    Repair {
        /// Its name
        name: String,
        /// Where it is, if nobody knows any more: a path on the server's machine, or a git URL
        #[arg(long)]
        source: Option<String>,
        /// Which branch [default: the one that is checked out there]
        #[arg(long, requires = "source")]
        branch: Option<String>,
    },
    /// Forget one; your own repository is not touched
    #[command(visible_alias = "rm")]
    Remove {
        /// Its name
        name: String,
    },
}

impl Repo {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        match self {
            Self::Add { name, source, branch } => add(context, &name, &source, branch),
            Self::List { json } => list(context, json),
            Self::Show { name, json } => show(context, &name, json),
            Self::Repair { name, source, branch } => {
                let mut body = json!({});
                if let Some(source) = source {
                    body["source"] = absolute(&source)?.into();
                }
                if let Some(branch) = branch {
                    body["branch"] = branch.into();
                }
                context.client.post(&format!("{}/repair", path(&name)), &body)?;
                wait_ready(context, &name)
            }
            Self::Remove { name } => {
                context.client.delete(&path(&name))?;
                writeln!(std::io::stdout(), "{name}  removed")?;
                Ok(SUCCESS)
            }
        }
    }
}

fn path(name: &str) -> String {
    format!("/api/repos/{}", escape(name))
}

fn add(
    context: &Context,
    name: &str,
    source: &str,
    branch: Option<String>,
) -> Result<Status, Failure> {
    let mut body = json!({ "name": name, "source": absolute(source)? });
    if let Some(branch) = branch {
        body["branch"] = branch.into();
    }
    context.client.post("/api/repos", &body)?;
    note(&format!("{name}: being cloned"));
    wait_ready(context, name)
}

fn wait_ready(context: &Context, name: &str) -> Result<Status, Failure> {
    let wait = format!("{}?wait=true", path(name));
    let repo = Follower::new(&context.target).persist(|client, contact| {
        client.get(&path(name))?;
        contact.answered();
        Ok(client.get(&wait)?.json()?)
    })?;
    if at(&repo, "/phase") != "ready" {
        return Err(Failure::Bad {
            detail: format!("{name} is {}: {}", at(&repo, "/phase"), at(&repo, "/reason")),
            hint: format!("`outlive repo remove {name}` forgets it; then add it again"),
        });
    }
    writeln!(std::io::stdout(), "{name}  ready{}", git_state(&repo))?;
    Ok(SUCCESS)
}

/// A path is meant from where the user stands; the server stands elsewhere. A URL, or `host:path`, is left alone.
fn absolute(source: &str) -> Result<String, Failure> {
    let local = Path::new(source);
    let meant = source.starts_with(['.', '/']) || local.exists();
    if source.contains("://") || !meant {
        return Ok(source.to_string());
    }
    let path = local.canonicalize().or_else(|_| std::path::absolute(local));
    let what = format!("cannot tell what path {source} is");
    let path = path.map_err(|source| Failure::Local { what, source })?;
    path.into_os_string().into_string().map_err(|path| Failure::Usage {
        detail: format!("the path of the repository is not UTF-8: {}", path.display()),
        hint: "paths are text here: rename it, or add it by another path".to_string(),
    })
}

/// `: branch main at 0123456789ab, with changes that are not committed`.
fn git_state(repo: &Value) -> String {
    let branch = at(repo, "/git/branch");
    let commit = at(repo, "/git/commit");
    let commit = commit.get(..12).unwrap_or(commit);
    let branch =
        if branch.is_empty() { String::new() } else { format!(": branch {}", clean(branch)) };
    let commit = if commit.is_empty() { String::new() } else { format!(" at {}", clean(commit)) };
    let dirty = repo.pointer("/git/dirty") == Some(&Value::Bool(true));
    let dirty = if dirty { ", with changes that are not committed" } else { "" };
    format!("{branch}{commit}{dirty}")
}

fn list(context: &Context, as_json: bool) -> Result<Status, Failure> {
    let found = context.client.get("/api/repos")?.json()?;
    if as_json {
        return print_json(&found);
    }
    write!(std::io::stdout(), "{}", lines(&found))?;
    Ok(SUCCESS)
}

fn lines(found: &Value) -> String {
    let now = clock::now();
    let row = |repo: &Value| {
        let phase = [at(repo, "/phase"), at(repo, "/reason")];
        let phase = if phase[1].is_empty() { phase[0].to_string() } else { phase.join(": ") };
        let created = ago(at(repo, "/created_at"), now);
        [clean(at(repo, "/name")), created, clean(at(repo, "/source")), clean(&phase)]
    };
    let rows: Vec<[String; 4]> = items(found, "/repos").iter().map(row).collect();
    if rows.is_empty() {
        return "no repositories; `outlive repo add NAME SOURCE` registers one\n".to_string();
    }
    table(["NAME", "ADDED", "SOURCE", "PHASE"], &rows)
}

fn show(context: &Context, name: &str, as_json: bool) -> Result<Status, Failure> {
    let repo = context.client.get(&path(name))?.json()?;
    if as_json {
        return print_json(&repo);
    }
    let row = |name: &str, text: &str| [name.to_string(), clean(text)];
    let phase = format!("{}{}", at(&repo, "/phase"), git_state(&repo));
    let rows = [
        row("repo", at(&repo, "/name")),
        row("source", at(&repo, "/source")),
        row("phase", &phase),
        row("reason", at(&repo, "/reason")),
        row("problem", at(&repo, "/git/problem")),
        row("added", &ago(at(&repo, "/created_at"), clock::now())),
    ];
    let told: Vec<[String; 2]> = rows.into_iter().filter(|row| !row[1].is_empty()).collect();
    write!(std::io::stdout(), "{}", table(["", ""], &told))?;
    Ok(SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_path_becomes_an_absolute_path() {
        for url in
            ["https://example.com/x.git", "ssh://git@h/x", "git@example.com:x/y.git", "file:///x"]
        {
            assert_eq!(absolute(url).expect("a source"), url);
        }
        let here = std::env::current_dir().expect("a directory").canonicalize().expect("there");
        assert_eq!(absolute(".").expect("a path"), here.to_str().expect("UTF-8"));
        assert_eq!(absolute("src").expect("a path"), here.join("src").to_str().expect("UTF-8"));
        assert_eq!(absolute("/nonexistent/x").expect("a path"), "/nonexistent/x");
    }

    #[test]
    fn a_repo_is_told_with_its_branch_and_commit() {
        let repo =
            json!({ "git": { "branch": "main", "commit": "0123456789abcdef", "dirty": true } });
        let told = ": branch main at 0123456789ab, with changes that are not committed";
        assert_eq!(git_state(&repo), told);
        assert_eq!(git_state(&json!({})), "");
    }

    #[test]
    fn repos_are_listed_with_why_one_is_unavailable() {
        let found = json!({ "repos": [
            { "name": "web", "source": "/x", "phase": "unavailable", "reason": "no such path" },
        ] });
        let table = lines(&found);
        assert_eq!(
            table,
            "NAME  ADDED  SOURCE  PHASE\nweb   -      /x      unavailable: no such path\n"
        );
        assert!(lines(&json!({ "repos": [] })).contains("outlive repo add"));
    }
}
