//! When does this process end? At the first SIGTERM or SIGINT in order, at the second at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first SIGTERM or SIGINT cancels; the second ends the process at once, with status 128 + its
/// number. Needs a tokio runtime.
///
/// # Errors
/// When the system refuses a signal handler.
pub fn signals() -> io::Result<CancellationToken> {
    signals_with(|| ())
}

/// As [`signals`], with something to do before the process ends at once, such as killing a child.
///
/// # Errors
/// When the system refuses a signal handler.
pub fn signals_with(before_exit: impl FnOnce() + Send + 'static) -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let first = shutdown.clone();
    // Never awaited: it lives for as long as the process does.
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
                _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
            }
        };
        let (name, _) = next().await;
        tracing::info!(signal = name, "shutting down; a second signal ends the process at once");
        first.cancel();
        let (name, kind) = next().await;
        tracing::warn!(signal = name, "ending at once");
        before_exit();
        std::process::exit(128 + kind.as_raw_value());
    });
    Ok(shutdown)
}
