//! What a server wakes for by itself: a time that has come, and room on the disk that has come back.

use std::net::SocketAddr;

use outlive_core::limits;
use outlive_supervisor::{FileError, replace_file};

use crate::clock;
use crate::data_dir::Paths;
use crate::truth::driver::Handle;
use crate::truth::room::Room;
use crate::world::fleet::Fleet;

/// Goes on with what waited for room whenever there is room again.
pub(super) fn watch_room(
    room: &Room,
    paths: &Paths,
    address: SocketAddr,
    handle: &Handle,
    fleet: &Fleet,
) -> impl Future<Output = ()> + use<> {
    let (paths, handle, fleet) = (paths.clone(), handle.clone(), fleet.clone());
    room.clone().watch(async move || {
        // Each was warned of when it failed first, and has its next try when room returns the next time.
        tell_address(&paths, address).ok();
        fleet.make_scratch().ok();
        handle.tick().await.ok();
    })
}

/// Writes down how the server is reached. It seldom changes, and what is not written needs no syncs on the way to ready.
pub(super) fn tell_address(paths: &Paths, address: SocketAddr) -> Result<(), FileError> {
    let (path, told) = (paths.address(), format!("{address}\n"));
    if std::fs::read(&path).ok().as_deref() == Some(told.as_bytes()) {
        return Ok(());
    }
    replace_file(&path, told.as_bytes())
}

/// Wakes the driver when something is due by time alone, and not otherwise.
#[expect(clippy::disallowed_methods, reason = "this is where due times become events")]
pub(super) async fn tick(handle: Handle) {
    let mut changes = handle.changes();
    let mut asked = None;
    loop {
        let due = changes.borrow_and_update().next_due();
        let wait = async {
            match due {
                // It comes with the next change; if it was not due yet by the driver's clock, it is asked for again.
                Some(due) if asked == Some(due) => tokio::time::sleep(limits::CLOCK_LOOK).await,
                // Looked at again and again: whoever sets the clock, or wakes the machine from its sleep, tells nobody.
                Some(due) => {
                    tokio::time::sleep(due.since(clock::now()).min(limits::CLOCK_LOOK)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {
                asked = due.filter(|due| *due <= clock::now());
                if handle.tick().await.is_err() {
                    return;
                }
            }
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}
