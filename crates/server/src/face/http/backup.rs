//! A backup, as a tar archive that is made while it is sent.

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::{App, Problem};

/// An answer that breaks off, instead of ending, is no backup.
pub(super) async fn get(State(app): State<App>) -> Result<Response, Problem> {
    let busy = || {
        Problem::new(StatusCode::CONFLICT, "backup_under_way", "another backup is being made")
            .hint("ask again when it is done")
    };
    let only_one = app.backing_up.clone().try_lock_owned().map_err(|_| busy())?;
    let backup = (app.backup)().await;
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar".to_string()),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"outlive-backup.tar\"".to_string()),
        (header::HeaderName::from_static("outlive-lsn"), backup.lsn.to_string()),
        (header::HeaderName::from_static("outlive-jobs"), backup.jobs.to_string()),
    ];
    let pieces = ReceiverStream::new(backup.pieces).map(move |piece| {
        // As long as pieces come, nobody else begins one.
        let _only_one = &only_one;
        piece
    });
    Ok((headers, Body::from_stream(pieces)).into_response())
}
