//! How do several services run in one process? A task each; when they end, those go first that ask the others.

use std::future::Future;
use std::pin::Pin;

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Context;

/// A service at work, until its context's shutdown. Boxed where it is written: a bare future is compiled again, with
/// all that it starts, in each program that awaits it.
pub type Serving = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// The services of one process.
pub struct Together {
    base: Context,
    asking: Group,
    answering: Group,
}

#[derive(Default)]
struct Group {
    stop: CancellationToken,
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Together {
    /// None yet. Each will have `base` with a name, a part of its health and a shutdown of its own.
    pub fn of(base: &Context) -> Self {
        Together { base: base.clone(), asking: Group::default(), answering: Group::default() }
    }

    /// Starts a service that asks others: it ends before them, for the calls that it still has in flight need them.
    pub fn ask<Served>(&mut self, service: &'static str, serve: impl FnOnce(Context) -> Served)
    where
        Served: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.asking.start(&self.base, service, serve);
    }

    /// Starts a service that is asked.
    pub fn answer<Served>(&mut self, service: &'static str, serve: impl FnOnce(Context) -> Served)
    where
        Served: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.answering.start(&self.base, service, serve);
    }

    /// Waits until one ends, which none should do by itself. Cancel-safe.
    ///
    /// # Errors
    /// With the name of the service and why it failed.
    pub async fn first_end(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            Some(ended) = self.asking.tasks.join_next() => named(ended),
            Some(ended) = self.answering.tasks.join_next() => named(ended),
            else => Ok(()),
        }
    }

    /// Ends them all.
    ///
    /// # Errors
    /// The first of theirs, once all have ended.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let asking = self.asking.end().await;
        asking.and(self.answering.end().await)
    }
}

impl Group {
    fn start<Served>(&mut self, base: &Context, service: &'static str, serve: impl FnOnce(Context) -> Served)
    where
        Served: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let served = serve(Context { shutdown: self.stop.clone(), ..base.for_service(service) });
        self.tasks.spawn(async move { (service, served.await) });
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let mut all = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            all = all.and(named(ended));
        }
        all
    }
}

fn named(ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>) -> anyhow::Result<()> {
    let (service, ended) = ended.context("a service failed")?;
    ended.with_context(|| format!("{service} failed"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;
    use crate::{Health, InForce, Settings, Traces, admin};

    fn base() -> Context {
        let settings = Arc::new(Settings::default());
        Context {
            service: "all",
            in_force: InForce::fixed(Arc::clone(&settings)),
            settings,
            shutdown: CancellationToken::new(),
            health: Health::new(),
            admin_addr: ([127, 0, 0, 1], 0).into(),
            pages: admin::Pages::default(),
            traces: Traces::default(),
        }
    }

    #[tokio::test]
    async fn who_asks_has_ended_before_who_is_asked_is_told() {
        let ended = Arc::new(Mutex::new(Vec::new()));
        let serve = |context: Context| {
            let ended = Arc::clone(&ended);
            async move {
                context.shutdown.cancelled().await;
                tokio::task::yield_now().await;
                ended.lock().push(context.service);
                Ok(())
            }
        };
        let mut services = Together::of(&base());
        services.answer("authorizer", serve);
        services.ask("ingress", serve);
        services.stop().await.unwrap();
        assert_eq!(*ended.lock(), ["ingress", "authorizer"]);
    }

    #[tokio::test]
    async fn who_fails_is_named_and_the_others_still_end() {
        let mut services = Together::of(&base());
        services.answer("router", |context| async move {
            context.shutdown.cancelled().await;
            Ok(())
        });
        services.ask("ingress", |_| async { anyhow::bail!("the port is taken") });
        let failed = services.first_end().await.unwrap_err();
        assert_eq!(format!("{failed:#}"), "ingress failed: the port is taken");
        services.stop().await.unwrap();
    }
}
