//! How is Switchboard run? Not yet.

use std::path::Path;

use anyhow::{Result, bail};

use super::{Running, Tools};
use crate::scenario::Scenario;

/// Starts one.
///
/// # Errors
/// Always.
pub async fn start(_: &Tools, _: Scenario, _: &Path) -> Result<Running> {
    bail!("not yet")
}

/// Which one that is.
///
/// # Errors
/// Always.
pub fn version(_: &Tools) -> Result<String> {
    bail!("not yet")
}
