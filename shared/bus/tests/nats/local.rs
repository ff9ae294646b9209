//! What do services of one process hand each other, and what does NATS still carry?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bus::server::NatsServer;
use bus::{AskError, Bus, BusSettings, Local, Question, Requests, TellError};
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::{PATIENCE, connect, eventually, settings, start_nats};

/// Two services of one process, and what NATS carries besides their messages to themselves.
struct Process {
    nats: NatsServer,
    asker: Bus,
    answerer: Bus,
    carried: Requests,
    elsewhere: Bus,
}

async fn process() -> Process {
    let nats = start_nats().await;
    let settings = BusSettings { local: Some(Local::default()), ..settings(&nats) };
    let asker = Bus::connect(&settings, "asker").await.unwrap();
    let answerer = Bus::connect(&settings, "answerer").await.unwrap();
    let elsewhere = connect(&nats).await;
    let carried = elsewhere.serve("swb.test.>", None).await.unwrap();
    Process { nats, asker, answerer, carried, elsewhere }
}

impl Process {
    /// What NATS has carried meanwhile.
    async fn carried(&mut self) -> Vec<Bytes> {
        let last = Bytes::from_static(b"last");
        self.asker.tell("swb.test.last", last.clone()).await.unwrap();
        let mut carried = Vec::new();
        loop {
            let request = timeout(PATIENCE, self.carried.next()).await.unwrap().unwrap();
            if request.message == last {
                return carried;
            }
            carried.push(request.message);
        }
    }
}

async fn answer_all(bus: Bus, mut requests: Requests) {
    while let Some(request) = requests.next().await {
        bus.tell(request.reply_to.unwrap(), request.message).await.unwrap();
    }
}

#[tokio::test]
async fn a_question_and_its_answer_stay_in_the_process() {
    let mut process = process().await;
    let requests = process.answerer.serve("swb.test.it", Some("group")).await.unwrap();
    tokio::spawn(answer_all(process.answerer.clone(), requests));
    let asked = process.asker.ask("swb.test.it", "in memory".into(), PATIENCE).await;
    assert_eq!(asked.unwrap(), "in memory");
    let (then, reply) = oneshot::channel();
    let question =
        Question { subject: "swb.test.it".into(), message: "and so".into(), wait: PATIENCE, asked: None };
    process.asker.ask_then(question, move |reply| then.send(reply).unwrap());
    assert_eq!(reply.await.unwrap().unwrap(), "and so");
    assert_eq!(process.asker.pending_asks(), 0);
    // What comes from elsewhere is answered as well, and alone has gone through NATS.
    let asked = process.elsewhere.ask("swb.test.it", "through NATS".into(), PATIENCE).await;
    assert_eq!(asked.unwrap(), "through NATS");
    assert_eq!(process.carried().await, ["through NATS"]);
}

#[tokio::test]
async fn what_is_taken_locally_is_over_when_it_is_sent() {
    let mut process = process().await;
    let mut requests = process.answerer.serve("swb.test.it", Some("group")).await.unwrap();
    let answerer = process.answerer.clone();
    requests.take_locally(move |request| {
        let answer = answerer.tell(request.reply_to.unwrap(), request.message);
        answer.now_or_never().unwrap().unwrap();
    });
    // Without a task that could run meanwhile.
    let asked = process.asker.ask("swb.test.it", "at once".into(), PATIENCE).now_or_never();
    assert_eq!(asked.unwrap().unwrap(), "at once");
    assert_eq!(process.carried().await, Vec::<Bytes>::new());
    process.elsewhere.tell("swb.test.it", "through NATS".into()).await.unwrap();
    assert_eq!(requests.next().await.unwrap().message, "through NATS");
    assert_eq!(process.carried().await, ["through NATS"]);
    requests.drain().await;
    process.asker.tell("swb.test.it", "to others".into()).await.unwrap();
    assert_eq!(process.carried().await, ["to others"]);
    // It has a bus itself, and may be the last to.
    let Process { answerer, .. } = process;
    drop(answerer);
    drop(requests);
}

#[tokio::test]
async fn what_names_the_process_is_its_own_and_what_all_may_hear_is_not() {
    let mut process = process().await;
    let own = format!("swb.test.{}", process.answerer.process());
    let mut to_one = process.answerer.serve(own.clone(), None).await.unwrap();
    let mut to_all = process.answerer.serve("swb.test.all", None).await.unwrap();
    process.asker.tell(own, "to one".into()).await.unwrap();
    process.asker.tell("swb.test.all", "to all".into()).await.unwrap();
    assert_eq!(to_one.next().await.unwrap().message, "to one");
    assert_eq!(to_all.next().await.unwrap().message, "to all");
    assert_eq!(process.carried().await, ["to all"]);
}

#[tokio::test]
async fn nobody_there_is_told_at_once() {
    let process = process().await;
    let gone = process.answerer.serve("swb.nobody", Some("group")).await.unwrap();
    drop(gone);
    eventually("NATS has heard that nobody is there", async || {
        let wait = Duration::from_millis(500);
        process.asker.ask("swb.nobody", Bytes::new(), wait).await == Err(AskError::NoResponders)
    })
    .await;
}

#[tokio::test]
async fn who_drains_is_handed_nothing_more_and_takes_what_it_was() {
    let mut process = process().await;
    let mut requests = process.answerer.serve("swb.test.it", Some("group")).await.unwrap();
    for _ in 0..3 {
        process.asker.tell("swb.test.it", "before".into()).await.unwrap();
    }
    requests.drain().await;
    process.asker.tell("swb.test.it", "after".into()).await.unwrap();
    assert_eq!(process.carried().await, ["after"]);
    let mut taken = Vec::new();
    while let Some(request) = requests.next().await {
        taken.push(request.message);
    }
    assert_eq!(taken.iter().filter(|message| *message == "before").count(), 3);
}

#[tokio::test]
async fn who_cannot_do_it_now_leaves_it_to_others() {
    let mut process = process().await;
    let is_able = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&is_able);
    let requests = process.answerer.serve("swb.test.it", Some("group")).await.unwrap();
    let mut requests = requests.locally_while(move || asked.load(Ordering::Relaxed));
    process.asker.tell("swb.test.it", "to others".into()).await.unwrap();
    assert_eq!(process.carried().await, ["to others"]);
    is_able.store(true, Ordering::Relaxed);
    process.asker.tell("swb.test.it", "here".into()).await.unwrap();
    assert_eq!(process.carried().await, Vec::<Bytes>::new());
    // Without others NATS has brought it back.
    let mut taken = [requests.next().await.unwrap().message, requests.next().await.unwrap().message];
    taken.sort_unstable();
    assert_eq!(taken, ["here", "to others"]);
}

#[tokio::test]
async fn what_waits_here_is_exactly_as_old_as_it_is() {
    let process = process().await;
    let mut requests = process.answerer.serve("swb.it", Some("group")).await.unwrap();
    let before = Instant::now();
    process.asker.tell("swb.it", Bytes::new()).await.unwrap();
    let sent = Instant::now();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let arrived = requests.next().await.unwrap().arrived;
    assert!(before <= arrived && arrived <= sent, "{:?}", before.elapsed());
}

#[tokio::test]
async fn a_full_queue_and_too_many_bytes_are_left_to_others() {
    let mut process = process().await;
    let mut requests = process.answerer.serve("swb.test.it", Some("group")).await.unwrap();
    for _ in 0..8_192 {
        process.asker.tell("swb.test.it", "here".into()).await.unwrap();
    }
    process.asker.tell("swb.test.it", "too many".into()).await.unwrap();
    assert_eq!(process.carried().await, ["too many"]);
    for _ in 0..8_193 {
        requests.next().await.unwrap();
    }
    let large = Bytes::from(vec![b'x'; 1024 * 1024]);
    for _ in 0..33 {
        process.asker.tell("swb.test.it", large.clone()).await.unwrap();
    }
    assert_eq!(process.carried().await, [large]);
    let larger = Bytes::from(vec![b'x'; 1024 * 1024 + 1]);
    let refused = process.asker.tell("swb.test.it", larger).await;
    assert_eq!(refused, Err(TellError::Unsendable), "NATS would not take it");
}

#[tokio::test]
async fn without_nats_nothing_is_asked_and_what_was_asked_is_answered() {
    let process = process().await;
    let mut requests = process.answerer.serve("swb.it", Some("group")).await.unwrap();
    let asking = tokio::spawn({
        let asker = process.asker.clone();
        async move { asker.ask("swb.it", Bytes::new(), PATIENCE).await }
    });
    let request = requests.next().await.unwrap();
    process.nats.kill().await;
    eventually("both notice", async || {
        let told = [&process.asker, &process.answerer].map(|bus| bus.tell("swb.it", Bytes::new()));
        futures::future::join_all(told).await == [Err(TellError::Down); 2]
    })
    .await;
    process.answerer.tell(request.reply_to.unwrap(), "all the same".into()).await.unwrap();
    assert_eq!(asking.await.unwrap().unwrap(), "all the same");
    assert_eq!(process.asker.ask("swb.it", Bytes::new(), PATIENCE).await, Err(AskError::Down));
}

#[tokio::test]
async fn who_has_closed_is_neither_asked_nor_answered() {
    let process = process().await;
    let mut requests = process.answerer.serve("swb.it", Some("group")).await.unwrap();
    let asking = tokio::spawn({
        let asker = process.asker.clone();
        async move { asker.ask("swb.it", Bytes::new(), PATIENCE).await }
    });
    let request = requests.next().await.unwrap();
    process.asker.close().await;
    assert_eq!(asking.await.unwrap(), Err(AskError::Down));
    process.answerer.tell(request.reply_to.unwrap(), "too late".into()).await.unwrap();
    assert_eq!(process.asker.tell("swb.it", Bytes::new()).await, Err(TellError::Down));
}
