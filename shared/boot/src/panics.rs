//! What does a fault of the program end? Its process, which is then started anew: half a service would look whole. But
//! what is set apart ends alone: a client that finds such a fault is not to end all others.

use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, PanicHookInfo, set_hook, take_hook};

use futures::FutureExt;

/// Exit status when a task that is not set apart has panicked: the one of Rust's own.
const EXIT_PANIC: i32 = 101;

tokio::task_local! {
    static SET_APART: ();
}

thread_local! {
    static FOR_ALL: Cell<bool> = const { Cell::new(false) };
}

/// Sets what runs as `future` apart: when it panics, this is an error, and nothing else ends. Whoever calls it clears
/// away what it leaves.
pub fn set_apart<F: Future>(future: F) -> impl Future<Output = Result<F::Output, Box<dyn Any + Send>>> {
    // What it shared is behind locks that know no poison, and left as it was between two awaits.
    AssertUnwindSafe(SET_APART.scope((), future)).catch_unwind()
}

/// Runs what is everybody's, also where it is called from what is set apart: when it panics, the process ends.
pub fn for_all<T>(run: impl FnOnce() -> T) -> T {
    let before = FOR_ALL.replace(true);
    let result = run();
    FOR_ALL.set(before);
    result
}

fn ends_the_process() -> bool {
    FOR_ALL.get() || SET_APART.try_with(|()| ()).is_err()
}

/// From now on whatever panics and is not set apart ends the process, once `tell` or Rust's own words have said where.
pub(crate) fn end_the_process(tell: Option<fn(&PanicHookInfo<'_>)>) {
    let rusts_own = take_hook();
    set_hook(Box::new(move |panic| {
        match tell {
            Some(tell) => tell(panic),
            None => rusts_own(panic),
        }
        if ends_the_process() {
            std::process::exit(EXIT_PANIC);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_set_apart_ends_alone() {
        assert_eq!(set_apart(async { 1 }).await.unwrap(), 1);
        assert!(ends_the_process());
        let fault = set_apart(async {
            tokio::task::yield_now().await;
            assert!(!ends_the_process());
            for_all(|| assert!(ends_the_process()));
            assert!(!ends_the_process());
            panic!("a fault of the program")
        });
        let ended: Result<(), _> = fault.await;
        assert_eq!(ended.unwrap_err().downcast_ref::<&str>(), Some(&"a fault of the program"));
        assert!(ends_the_process());
    }
}
