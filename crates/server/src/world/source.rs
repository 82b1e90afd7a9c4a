//! Where a repo comes from, as a person writes it: a local work tree or a git URL. Pure text, no I/O.
//!
//! Absent: looking whether it exists; that is found out by cloning.

use std::path::PathBuf;

/// What a repo is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The root of a git work tree on this machine, copied whole: with ignored and untracked files and the index.
    Local(PathBuf),
    /// A URL, or `[user@]host:path`, cloned by git.
    Url(String),
}

/// Why a text is not a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSource {
    /// Nothing is there.
    #[error("a source is a path or a git URL, and this is empty")]
    Empty,
    /// Longer than [`SOURCE_BYTES_MAX`].
    #[error("a source has at most {SOURCE_BYTES_MAX} bytes")]
    TooLong,
    /// Line breaks and the like.
    #[error("a source has no control characters")]
    Control,
    /// A relative path means something else to the server than to whoever wrote it.
    #[error("the path {0:?} must be absolute, or the source a git URL")]
    Relative(String),
    /// A password or token would be stored and shown; `git credential` and ssh keys are for that.
    #[error(
        "a URL must not contain a user name or password: use a git credential helper or an ssh key"
    )]
    UserInfo,
    /// Not one of https, http, ssh, file.
    #[error("{0:?} URLs are not supported: use https, http, ssh or file")]
    Scheme(String),
    /// A URL without a host or path, or a host that looks like an option.
    #[error("the URL {0:?} lacks a host or a path")]
    Incomplete(String),
}

/// Sources are kept in records and shown in one line.
pub const SOURCE_BYTES_MAX: usize = 4096;

/// Reads a source. A user name is accepted for ssh only (`git@host:path`, `ssh://git@host/path`), where it is no secret; a
/// password never.
pub fn parse_source(text: &str) -> Result<Source, BadSource> {
    if text.is_empty() {
        return Err(BadSource::Empty);
    }
    if text.len() > SOURCE_BYTES_MAX {
        return Err(BadSource::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(BadSource::Control);
    }
    if text.starts_with('/') {
        return Ok(Source::Local(PathBuf::from(text)));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return url(text, &scheme.to_ascii_lowercase(), rest);
    }
    // git's own rule: a colon before the first slash makes it `host:path`.
    let colon = text.find(':').filter(|colon| text.find('/').is_none_or(|slash| *colon < slash));
    let Some(colon) = colon else { return Err(BadSource::Relative(text.to_owned())) };
    let (host, path) = (&text[..colon], &text[colon + 1..]);
    if path.starts_with(':') {
        // `ext::command` and the like name a program to run.
        return Err(BadSource::Scheme(host.to_owned()));
    }
    if path.split('/').next().is_some_and(|start| start.contains('@')) {
        // `user:password@host:path`, which git would take for a host named `user`.
        return Err(BadSource::UserInfo);
    }
    authority(text, host, true)?;
    if path.is_empty() || path.starts_with('-') {
        return Err(BadSource::Incomplete(text.to_owned()));
    }
    Ok(Source::Url(text.to_owned()))
}

fn url(text: &str, scheme: &str, rest: &str) -> Result<Source, BadSource> {
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    match scheme {
        "https" | "http" => authority(text, host, false)?,
        "ssh" => authority(text, host, true)?,
        "file" if host.is_empty() || host == "localhost" => {}
        "file" if host.contains('@') => return Err(BadSource::UserInfo),
        "file" => return Err(BadSource::Incomplete(text.to_owned())),
        _ if !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) => {
            return Err(BadSource::Relative(text.to_owned()));
        }
        _ => return Err(BadSource::Scheme(scheme.to_owned())),
    }
    if path.is_empty() {
        return Err(BadSource::Incomplete(text.to_owned()));
    }
    Ok(Source::Url(text.to_owned()))
}

fn authority(text: &str, authority: &str, user_allowed: bool) -> Result<(), BadSource> {
    let host = match authority.rsplit_once('@') {
        Some((user, host)) => {
            let name_only =
                !user.is_empty() && !user.contains([':', '@']) && !user.starts_with('-');
            if !user_allowed || !name_only {
                return Err(BadSource::UserInfo);
            }
            host
        }
        None => authority,
    };
    if host.is_empty() || host.starts_with(['-', ':']) || host.contains(' ') {
        return Err(BadSource::Incomplete(text.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_git_urls_are_sources() {
        assert_eq!(parse_source("/srv/app"), Ok(Source::Local("/srv/app".into())));
        for url in [
            "https://example.org/team/app.git",
            "HTTPS://example.org/team/app.git",
            "http://127.0.0.1:3000/app",
            "ssh://git@example.org:2222/app.git",
            "ssh://example.org/app.git",
            "git@example.org:team/app.git",
            "example.org:app.git",
            "file:///srv/app.git",
            "https://example.org/a@b/c:d.git",
        ] {
            assert_eq!(parse_source(url), Ok(Source::Url(url.to_owned())), "{url}");
        }
    }

    #[test]
    fn user_info_in_a_url_is_refused_but_for_the_name_of_an_ssh_user() {
        for url in [
            "https://ghp_secret@example.org/app.git",
            "https://user:secret@example.org/app.git",
            "http://@example.org/app.git",
            "https://a@b@example.org/app.git",
            "ssh://git:secret@example.org/app.git",
            "user:secret@example.org:app.git",
            "file://user:secret@example.org/app.git",
            "ssh://-oProxyCommand=x@example.org/app.git",
        ] {
            assert_eq!(parse_source(url), Err(BadSource::UserInfo), "{url}");
            let told = BadSource::UserInfo.to_string();
            assert!(!told.contains("secret"), "{told}");
        }
    }

    #[test]
    fn what_git_would_run_as_a_program_or_an_option_is_refused() {
        assert_eq!(parse_source("ext::sh -c id"), Err(BadSource::Scheme("ext".into())));
        assert_eq!(parse_source("git://example.org/a"), Err(BadSource::Scheme("git".into())));
        assert_eq!(parse_source("ftp://example.org/a"), Err(BadSource::Scheme("ftp".into())));
        for incomplete in [
            "ssh://-oProxyCommand=id/app",
            "-oProxyCommand=id:app",
            "https://example.org",
            "https:///app",
            "file://example.org/app",
            "example.org:",
            "file:///",
            ":x",
        ] {
            let expected = Err(BadSource::Incomplete(incomplete.to_owned()));
            assert_eq!(parse_source(incomplete), expected, "{incomplete}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(parse_source(""), Err(BadSource::Empty));
        assert_eq!(parse_source("https://e.org/a\nb"), Err(BadSource::Control));
        assert_eq!(parse_source(&"/".repeat(SOURCE_BYTES_MAX + 1)), Err(BadSource::TooLong));
        for relative in ["app", "./app", "../app", "--upload-pack=id", "~/app", "a b://c/d"] {
            let expected = Err(BadSource::Relative(relative.to_owned()));
            assert_eq!(parse_source(relative), expected, "{relative}");
        }
    }
}
