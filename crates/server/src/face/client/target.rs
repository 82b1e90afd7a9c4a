//! Finding the server, and finding it again after it was restarted, perhaps at another address.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Client;
use crate::data_dir::Paths;

/// Where a server listens if nobody says otherwise.
pub const DEFAULT_SERVER: &str = "127.0.0.1:7878";

/// A server that is not back after this long will need a person.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Between two looks for a server that is away: short beside its start, long for a processor.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How the server is found: by name, or by what a running one wrote into its data directory.
#[derive(Clone)]
pub struct Target {
    server: Option<String>,
    token: Option<String>,
    paths: Paths,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Target {
    /// Empty texts count as not given.
    pub fn new(server: Option<String>, token: Option<String>, data: PathBuf) -> Self {
        let given = |text: Option<String>| {
            text.map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
        };
        Self { server: given(server), token: given(token), paths: Paths::new(data) }
    }

    /// A client of the server as it is to be found now.
    pub fn client(&self) -> Client {
        let written = read(&self.paths.address());
        let server = self.server.clone().or_else(|| written.clone());
        let server = server.unwrap_or_else(|| DEFAULT_SERVER.to_string());
        // The token of this machine's server is not for others, who could use it against us.
        let ours = is_loopback(&server) || written.as_ref() == Some(&server);
        let token = self.token.clone();
        let token = token.or_else(|| read(&self.paths.token()).filter(|_| ours));
        Client::new(server, token)
    }
}

/// A missing file says nothing; one that cannot be read says nothing to *this* user.
fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_string()).filter(|text| !text.is_empty())
}

fn is_loopback(server: &str) -> bool {
    let server = server.strip_prefix("http://").unwrap_or(server).trim_end_matches('/');
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// How long to look out for a server that is away.
#[derive(Debug)]
pub struct Patience {
    most: Duration,
    away_since: Option<Instant>,
}

impl Patience {
    /// Looks out for at most this long at a stretch.
    pub fn new(most: Duration) -> Self {
        Self { most, away_since: None }
    }

    /// The server was there.
    pub fn renew(&mut self) {
        self.away_since = None;
    }

    /// Pauses before the next look; false: it has been away too long.
    #[expect(
        clippy::disallowed_methods,
        reason = "a server at another address can only be asked again; nothing tells when it is back"
    )]
    pub fn pause(&mut self) -> bool {
        let since = *self.away_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.most {
            return false;
        }
        std::thread::sleep(LOOK_AGAIN);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().to_path_buf();
        (dir, path)
    }

    #[test]
    fn a_server_is_found_by_name_then_by_what_it_wrote_then_by_default() {
        let (_dir, data) = data();
        let found = |server: Option<&str>| {
            let target = Target::new(server.map(str::to_string), None, data.clone());
            target.client().server().to_string()
        };
        assert_eq!(found(None), DEFAULT_SERVER);
        fs::write(data.join("address"), "127.0.0.1:4711\n").expect("written");
        assert_eq!(found(None), "127.0.0.1:4711");
        assert_eq!(found(Some("")), "127.0.0.1:4711");
        assert_eq!(found(Some("http://10.0.0.7:1/")), "10.0.0.7:1");
    }

    #[test]
    fn the_token_of_this_machine_goes_to_this_machine_only() {
        let (_dir, data) = data();
        fs::write(data.join("token"), "secret\n").expect("written");
        fs::write(data.join("address"), "10.0.0.1:7878\n").expect("written");
        let token = |server: Option<&str>, token: Option<&str>| {
            let own = |text: Option<&str>| text.map(str::to_string);
            Target::new(own(server), own(token), data.clone()).client().token
        };
        let secret = Some("secret".to_string());
        assert_eq!(token(None, None), secret);
        for ours in ["127.0.0.1:1", "localhost:1", "[::1]:1", "http://127.0.0.1:1/"] {
            assert_eq!(token(Some(ours), None), secret, "{ours}");
        }
        assert_eq!(token(Some("10.0.0.7:7878"), None), None);
        assert_eq!(token(Some("127.0.0.1.evil.example:1"), None), None);
        assert_eq!(token(Some("10.0.0.7:7878"), Some("given")), Some("given".to_string()));
    }

    #[test]
    fn a_client_and_a_target_do_not_print_their_token() {
        let (_dir, data) = data();
        let target = Target::new(None, Some("s3cret".to_string()), data);
        assert!(!format!("{target:?} {:?}", target.client()).contains("s3cret"));
    }

    #[test]
    fn patience_ends_and_is_renewed() {
        let mut patience = Patience::new(Duration::ZERO);
        assert!(!patience.pause());
        let mut patience = Patience::new(PATIENCE);
        patience.away_since = Instant::now().checked_sub(PATIENCE);
        assert!(!patience.pause());
        patience.renew();
        assert!(patience.pause());
    }
}
