//! Is one call made under a key, whoever asks at the same time?

use bus::once::{Once, Standing};
use bytes::Bytes;

use crate::{connect, start_nats};

#[tokio::test]
async fn one_of_many_makes_the_record_and_all_others_read_it() {
    let nats = start_nats().await;
    let buses = [connect(&nats).await, connect(&nats).await];
    let once = buses.each_ref().map(|bus| Once::new(bus.clone(), 1 << 20));
    let makes =
        (0..40).map(|number: usize| once[number % 2].make("app.key", Bytes::from(number.to_string())));
    let (mut made, mut read) = (Vec::new(), Vec::new());
    for (number, standing) in futures::future::join_all(makes).await.into_iter().enumerate() {
        match standing.unwrap() {
            Standing::Made(revision) => made.push((number, revision)),
            Standing::Record(record) => read.push(record),
        }
    }
    let [(number, revision)] = made[..] else { panic!("made by {made:?}") };
    assert!(read.len() == 39 && read.iter().all(|it| it == number.to_string().as_bytes()), "{read:?}");

    // Its end takes its place; an older writing changes nothing.
    once[0].change("app.key", revision, "end".into()).await.unwrap();
    assert_eq!(once[1].read("app.key").await, Ok(Some("end".into())));
    assert!(once[1].change("app.key", revision, "other".into()).await.is_err());
    assert!(once[1].remove("app.key", revision).await.is_err());
    assert_eq!(once[1].make("app.key", "again".into()).await, Ok(Standing::Record("end".into())));

    // What was never seen leaves its key free, at once.
    let Ok(Standing::Made(revision)) = once[0].make("app.free", "first".into()).await else { panic!() };
    once[0].remove("app.free", revision).await.unwrap();
    assert_eq!(once[1].read("app.free").await, Ok(None));
    assert!(matches!(once[1].make("app.free", "second".into()).await, Ok(Standing::Made(_))));
    assert_eq!(once[0].make("app.free", "third".into()).await, Ok(Standing::Record("second".into())));
}
