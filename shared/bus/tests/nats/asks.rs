//! How can a question end?

use std::time::Duration;

use bus::server::{NatsServer, ServerOptions};
use bus::{AskError, Bus, BusError, BusSettings, Connection, TellError};
use bytes::Bytes;
use tokio::time::{Instant, timeout};

use crate::{PATIENCE, connect, eventually, server_options, settings, start_nats};

/// Answers everything on `subject` with what it was asked.
async fn echo(bus: &Bus, subject: &str, queue: Option<&str>) -> tokio::task::JoinHandle<usize> {
    let mut requests = bus.serve(subject, queue).await.unwrap();
    let bus = bus.clone();
    tokio::spawn(async move {
        let mut answered = 0;
        while let Some(request) = requests.next().await {
            bus.tell(request.reply_to.unwrap(), request.message).await.unwrap();
            answered += 1;
        }
        answered
    })
}

#[tokio::test]
async fn each_answer_reaches_its_own_question() {
    let nats = start_nats().await;
    let (asker, answerer) = (connect(&nats).await, connect(&nats).await);
    echo(&answerer, "swb.test", None).await;
    let asks = (0..500u32).map(|number| {
        let asker = asker.clone();
        async move {
            let message = Bytes::from(number.to_string());
            assert_eq!(asker.ask("swb.test", message.clone(), PATIENCE).await.unwrap(), message);
        }
    });
    futures::future::join_all(asks).await;
    assert_eq!(asker.pending_asks(), 0);
}

#[tokio::test]
async fn nobody_there_is_told_at_once() {
    let nats = start_nats().await;
    let asker = connect(&nats).await;
    assert_eq!(asker.ask("swb.nobody", Bytes::new(), PATIENCE).await, Err(AskError::NoResponders));
    assert_eq!(asker.pending_asks(), 0);
}

#[tokio::test]
async fn all_who_listen_on_any_of_the_subjects_answer_each_question() {
    let nats = start_nats().await;
    let (asker, one, other) = (connect(&nats).await, connect(&nats).await, connect(&nats).await);
    for (bus, subject) in [(&one, "swb.all.a"), (&other, "swb.all.a"), (&other, "swb.all.b")] {
        echo(bus, subject, None).await;
    }
    let subjects = || ["swb.all.a", "swb.all.nobody", "swb.all.b"].map(str::to_owned);
    let ask = |message: &'static str| asker.ask_all(subjects(), message.into(), Duration::from_secs(3));
    let (first, second) = tokio::join!(ask("first"), ask("second"));
    assert_eq!(
        (first.unwrap(), second.unwrap()),
        (vec![Bytes::from("first"); 3], vec![Bytes::from("second"); 3])
    );
    let nobody = asker.ask_all(["swb.nobody".to_owned()], Bytes::new(), Duration::from_secs(600));
    assert!(timeout(PATIENCE, nobody).await.unwrap().unwrap().is_empty());
}

#[tokio::test]
async fn a_late_answer_goes_nowhere() {
    let nats = start_nats().await;
    let (asker, answerer) = (connect(&nats).await, connect(&nats).await);
    let mut requests = answerer.serve("swb.test", None).await.unwrap();
    let asked = asker.ask("swb.test", Bytes::new(), Duration::from_millis(50)).await;
    assert_eq!(asked, Err(AskError::Expired));
    assert_eq!(asker.pending_asks(), 0);

    let late = requests.next().await.unwrap();
    answerer.tell(late.reply_to.unwrap(), "late".into()).await.unwrap();
    // The next answer comes behind the late one on the same way, and is not taken for it.
    echo(&answerer, "swb.echo", None).await;
    assert_eq!(asker.ask("swb.echo", "in time".into(), PATIENCE).await.unwrap(), "in time");
}

#[tokio::test]
async fn what_was_queued_while_nobody_took_it_is_as_old_as_that() {
    let nats = start_nats().await;
    let (asker, answerer) = (connect(&nats).await, connect(&nats).await);
    let mut requests = answerer.serve("swb.test", None).await.unwrap();
    for _ in 0..3 {
        asker.tell("swb.test", Bytes::new()).await.unwrap();
    }
    asker.confirm(PATIENCE).await.unwrap();
    requests.next().await.unwrap();
    let left_at = std::time::Instant::now();
    tokio::time::sleep(Duration::from_millis(700)).await;
    for _ in 0..2 {
        assert!(requests.next().await.unwrap().arrived <= left_at, "both stood behind what took so long");
    }
    // Waiting is no holding up, also by one who gives up and comes back.
    assert!(timeout(Duration::from_millis(700), requests.next()).await.is_err());
    asker.tell("swb.test", Bytes::new()).await.unwrap();
    asker.confirm(PATIENCE).await.unwrap();
    eventually("it is queued", async || {
        let taken = timeout(Duration::ZERO, requests.next()).await.ok().flatten();
        taken.is_some_and(|request| request.arrived.elapsed() < Duration::from_millis(500))
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_question_leaves_nothing_behind() {
    let nats = start_nats().await;
    let (asker, answerer) = (connect(&nats).await, connect(&nats).await);
    let mut requests = answerer.serve("swb.test", None).await.unwrap();
    let task = tokio::spawn({
        let asker = asker.clone();
        async move { asker.ask("swb.test", Bytes::new(), PATIENCE).await }
    });
    requests.next().await.unwrap();
    assert_eq!(asker.pending_asks(), 1);
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(asker.pending_asks(), 0);
}

#[tokio::test]
async fn one_question_too_many_is_refused_unsent() {
    let nats = start_nats().await;
    let answerer = connect(&nats).await;
    let settings = BusSettings { max_pending_asks: 2, ..settings(&nats) };
    let asker = Bus::connect(&settings, "test").await.unwrap();
    let mut requests = answerer.serve("swb.test", None).await.unwrap();
    let open: Vec<_> = (0..2)
        .map(|_| {
            let asker = asker.clone();
            tokio::spawn(async move { asker.ask("swb.test", Bytes::new(), PATIENCE).await })
        })
        .collect();
    for _ in 0..2 {
        let request = requests.next().await.unwrap();
        if asker.pending_asks() == 2 {
            assert_eq!(asker.ask("swb.test", Bytes::new(), PATIENCE).await, Err(AskError::Full));
        }
        answerer.tell(request.reply_to.unwrap(), Bytes::new()).await.unwrap();
    }
    for open in open {
        open.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_nats_would_not_take_is_refused_unsent() {
    let nats = start_nats().await;
    let bus = connect(&nats).await;
    let too_long = Bytes::from(vec![0; bus.max_payload_bytes() + 1]);
    assert_eq!(bus.ask("swb.test", too_long.clone(), PATIENCE).await, Err(AskError::Unsendable));
    assert_eq!(bus.tell("swb.test", too_long).await, Err(TellError::Unsendable));
    assert_eq!(bus.tell("swb.te st", Bytes::new()).await, Err(TellError::Unsendable));
    let forged = "swb.reply.1.2 3\r\nPUB swb.node.1 0\r\n";
    assert_eq!(bus.forward("swb.test", forged, Bytes::new()).await, Err(TellError::Unsendable));
    assert_eq!(bus.pending_asks(), 0);
}

#[tokio::test]
async fn a_forwarded_message_that_nobody_takes_bounces() {
    let nats = start_nats().await;
    let (asker, forwarder) = (connect(&nats).await, connect(&nats).await);
    let subjects = forwarder.subjects().clone();
    let mut calls = forwarder.serve("swb.call", Some("authorizer")).await.unwrap();
    let mut bounces = forwarder.serve(subjects.bounces(forwarder.process()), None).await.unwrap();
    let work = tokio::spawn({
        let forwarder = forwarder.clone();
        async move {
            let call = calls.next().await.unwrap();
            let bounce = subjects.bounce(forwarder.process(), &call.reply_to.unwrap());
            forwarder.forward("swb.route", bounce, call.message).await.unwrap();
            let bounced = bounces.next().await.unwrap();
            assert!(bounced.no_responders);
            let caller = subjects.bounced_inbox(forwarder.process(), &bounced.subject).unwrap().1;
            forwarder.tell(caller, "no router".into()).await.unwrap();
        }
    });
    assert_eq!(asker.ask("swb.call", Bytes::new(), PATIENCE).await.unwrap(), "no router");
    work.await.unwrap();
}

#[tokio::test]
async fn a_reply_goes_to_no_subject_that_is_no_inbox() {
    let nats = start_nats().await;
    let (asker, answerer) = (connect(&nats).await, connect(&nats).await);
    let mut requests = answerer.serve("swb.test", None).await.unwrap();
    for (reply_to, expected) in
        [("swb.route", None), ("_INBOX.1", None), ("swb.reply.1.1", Some("swb.reply.1.1"))]
    {
        asker.forward("swb.test", reply_to, Bytes::new()).await.unwrap();
        assert_eq!(requests.next().await.unwrap().reply_to.as_deref(), expected);
    }
}

#[tokio::test]
async fn while_nats_is_away_nothing_is_sent_and_then_it_goes_on() {
    let nats = start_nats().await;
    let port = nats.port();
    let (asker, answerer) = (connect(&nats).await, connect(&nats).await);
    echo(&answerer, "swb.test", None).await;
    let mut connection = asker.connection();
    assert_eq!(*connection.borrow(), Connection::Up { epoch: 1 });

    nats.kill().await;
    timeout(PATIENCE, connection.wait_for(|now| *now == Connection::Down)).await.unwrap().unwrap();
    let started = Instant::now();
    assert_eq!(asker.ask("swb.test", Bytes::new(), PATIENCE).await, Err(AskError::Down));
    assert_eq!(asker.tell("swb.test", Bytes::new()).await, Err(TellError::Down));
    assert!(started.elapsed() < Duration::from_secs(1));

    let _nats = NatsServer::start(&ServerOptions { port, ..server_options() }).await.unwrap();
    timeout(PATIENCE, connection.wait_for(|now| *now == Connection::Up { epoch: 2 })).await.unwrap().unwrap();
    eventually("the answerer is back", async || {
        asker.ask("swb.test", "again".into(), PATIENCE).await.is_ok_and(|reply| reply == "again")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn members_that_drain_under_load_lose_no_message() {
    let nats = start_nats().await;
    let (asker, stays) = (connect(&nats).await, connect(&nats).await);
    echo(&stays, "swb.test", Some("group")).await;

    for (askers, pause, rounds) in [(64, None, 10), (8, Some(Duration::from_millis(5)), 2)] {
        let (end, ends) = tokio::sync::watch::channel(false);
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..askers {
            let (asker, ends) = (asker.clone(), ends.clone());
            asking.spawn(async move {
                let mut lost = 0;
                while !*ends.borrow() {
                    lost +=
                        usize::from(asker.ask("swb.test", "x".into(), Duration::from_secs(5)).await.is_err());
                    if let Some(pause) = pause {
                        tokio::time::sleep(pause).await;
                    }
                }
                lost
            });
        }
        for _ in 0..rounds {
            let leaves = connect(&nats).await;
            let mut requests = leaves.serve("swb.test", Some("group")).await.unwrap();
            let mut taken = 0;
            while let Some(request) = requests.next().await {
                taken += 1;
                leaves.tell(request.reply_to.unwrap(), request.message).await.unwrap();
                if taken == 100 {
                    requests.drain().await;
                }
            }
            assert!(taken >= 100);
            leaves.close().await;
        }
        end.send_replace(true);
        assert_eq!(asking.join_all().await.iter().sum::<usize>(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_was_cut_off_drains_as_well() {
    let nats = start_nats().await;
    let port = nats.port();
    let (asker, stays, leaves) = (connect(&nats).await, connect(&nats).await, connect(&nats).await);
    echo(&stays, "swb.test", Some("group")).await;
    let mut requests = leaves.serve("swb.test", Some("group")).await.unwrap();
    let (drain, mut drains) = tokio::sync::watch::channel(false);
    let leaving = tokio::spawn(async move {
        loop {
            tokio::select! {
                Ok(()) = drains.changed() => requests.drain().await,
                request = requests.next() => {
                    let Some(request) = request else { return leaves };
                    leaves.tell(request.reply_to.unwrap(), request.message).await.unwrap();
                }
            }
        }
    });
    let is_lost =
        async || usize::from(asker.ask("swb.test", "x".into(), Duration::from_millis(100)).await.is_err());
    for _ in 0..1_000 {
        assert_eq!(is_lost().await, 0);
    }
    nats.kill().await;
    let _nats = NatsServer::start(&ServerOptions { port, ..server_options() }).await.unwrap();
    eventually("all are back", async || {
        let [first, second, third] = [is_lost().await, is_lost().await, is_lost().await];
        first + second + third == 0
    })
    .await;
    drain.send_replace(true);
    let mut lost = 0;
    while !leaving.is_finished() {
        lost += is_lost().await;
    }
    // Its connection goes on for as long as there is something to answer.
    let _leaves = leaving.await.unwrap();
    for _ in 0..100 {
        lost += is_lost().await;
    }
    // One may be under way while the server hears of it.
    assert!(lost <= 1, "{lost}");
}

#[tokio::test]
async fn what_was_told_before_closing_arrives() {
    let nats = start_nats().await;
    let (listener, talker) = (connect(&nats).await, connect(&nats).await);
    let mut heard = listener.serve("swb.test", None).await.unwrap();
    for _ in 0..1000 {
        talker.tell("swb.test", Bytes::from_static(&[b'x'; 1000])).await.unwrap();
    }
    let open = tokio::spawn({
        let talker = talker.clone();
        async move { talker.ask("swb.test", "unanswered".into(), PATIENCE).await }
    });
    eventually("the question is open", async || talker.pending_asks() == 1).await;
    talker.close().await;
    assert_eq!(open.await.unwrap(), Err(AskError::Down));
    assert_eq!(talker.tell("swb.test", Bytes::new()).await, Err(TellError::Down));
    for _ in 0..1001 {
        timeout(PATIENCE, heard.next()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn no_server_is_an_error_that_names_it() {
    let nats = start_nats().await;
    let settings = BusSettings { connect_timeout_ms: 300, ..settings(&nats) };
    nats.kill().await;
    let Err(BusError::Connect { url, .. }) = Bus::connect(&settings, "test").await else {
        panic!("it is not there")
    };
    assert_eq!(url, settings.url);
}
