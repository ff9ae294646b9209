//! The ingress service on its own.

use std::process::ExitCode;

use bus::Bus;
use switchboard_ingress::Ingress;

fn main() -> ExitCode {
    todo_boot()
}
