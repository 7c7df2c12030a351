//! Sockets that systemd opened (sd_listen_fds(3)).

use std::io;

use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

use crate::serve::{Kind, Listener, Security, ServeError};

/// All that was handed over. TCP sockets are secured as if opened here.
///
/// # Errors
/// None was, or one is neither a Unix nor a TCP socket that listens.
pub fn activated(security: &Security) -> Result<Vec<Listener>, ServeError> {
    let mut handed = ListenFd::from_env();
    let mut listeners = Vec::new();
    for place in 0..handed.len() {
        if let Ok(Some(socket)) = handed.take_unix_listener(place) {
            socket
                .set_nonblocking(true)
                .map_err(ServeError::Activation)?;
            let shown = socket
                .local_addr()
                .ok()
                .and_then(|address| Some(address.as_pathname()?.display().to_string()));
            let socket = UnixListener::from_std(socket).map_err(ServeError::Activation)?;
            listeners.push(Listener {
                kind: Kind::Unix(socket),
                shown: format!("unix://{}", shown.unwrap_or_default()),
                _file: None,
            });
            continue;
        }
        let socket = handed
            .take_tcp_listener(place)
            .map_err(ServeError::Activation)?;
        if let Some(socket) = socket {
            socket
                .set_nonblocking(true)
                .map_err(ServeError::Activation)?;
            let socket = TcpListener::from_std(socket).map_err(ServeError::Activation)?;
            listeners.push(Listener::tcp(socket, security)?);
        }
    }
    if listeners.is_empty() {
        return Err(ServeError::Activation(io::Error::other(
            "none was: fd:// is for services that systemd starts for a socket unit",
        )));
    }
    Ok(listeners)
}
