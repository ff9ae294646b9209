//! Is a nats-server that we start ours alone, from its first answer to its end?

use bus::server::{NatsServer, ServerError, ServerOptions};
use bus::{Bus, BusError, Connection};
use tokio::time::timeout;

use crate::{PATIENCE, connect, eventually, server_options, settings, start_nats};

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let nats = start_nats().await;
    let port = nats.port();
    match NatsServer::start(&ServerOptions { port, ..server_options() }).await {
        Err(ServerError::PortTaken { port: named }) => assert_eq!(named, port),
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test]
async fn a_program_that_is_none_is_an_error_that_names_it() {
    let options = ServerOptions { binary: "/no/such/nats-server".into(), ..server_options() };
    let error = NatsServer::start(&options).await.err().unwrap();
    assert!(error.to_string().contains("/no/such/nats-server"), "{error}");
}

#[tokio::test]
async fn what_it_said_is_told_when_it_does_not_start() {
    let options = ServerOptions { config_file: Some("/no/such/file".into()), ..server_options() };
    let error = NatsServer::start(&options).await.err().unwrap();
    assert!(error.to_string().contains("/no/such/file"), "{error}");
}

#[tokio::test]
async fn it_stops_when_told_and_keeps_its_files() {
    let folder = std::env::temp_dir().join(format!("switchboard-bus-test-{}", uuid::Uuid::new_v4()));
    let (store_dir, one) = (Some(folder.clone()), Some(1));
    let options =
        ServerOptions { store_dir, max_processors: one, max_garbage_percent: Some(50), ..server_options() };
    let nats = NatsServer::start(&options).await.unwrap();
    let url = nats.url();
    let pid = nats.pid().unwrap();
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    for told in ["GOMAXPROCS=1", "GOGC=50"] {
        assert!(environment.split(|byte| *byte == 0).any(|it| it == told.as_bytes()), "{told}");
    }
    connect(&nats).await.close().await;
    nats.stop().await;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(folder.join("jetstream").exists());
    let gone = bus::BusSettings { url, connect_timeout_ms: 200, ..Default::default() };
    assert!(matches!(Bus::connect(&gone, "test").await, Err(BusError::Connect { .. })));
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn who_is_not_let_in_hears_so_at_once() {
    let folder = std::env::temp_dir().join(format!("switchboard-bus-test-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&folder).unwrap();
    let config_file = folder.join("nats.conf");
    std::fs::write(&config_file, "authorization { users: [{ user: us, password: secret }] }").unwrap();
    let options = ServerOptions { config_file: Some(config_file), ..server_options() };
    let nats = NatsServer::start(&options).await.unwrap();
    let started = std::time::Instant::now();
    assert!(Bus::connect(&settings(&nats), "test").await.is_err());
    assert!(started.elapsed().as_secs() < 3);
    let us = bus::BusSettings { user: Some("us".into()), password: Some("secret".into()), ..settings(&nats) };
    Bus::connect(&us, "test").await.unwrap().close().await;
    assert!(!format!("{us:?}").contains("secret"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_body_that_fits_no_message_is_a_fault_of_the_settings() {
    let folder = std::env::temp_dir().join(format!("switchboard-bus-test-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&folder).unwrap();
    let config_file = folder.join("nats.conf");
    std::fs::write(&config_file, "max_payload: 67583").unwrap();
    let options = ServerOptions { config_file: Some(config_file), ..server_options() };
    let nats = NatsServer::start(&options).await.unwrap();
    let bus = connect(&nats).await;
    let mut allowed = boot::Settings::default();
    let error = bus.admits_bodies(&allowed).unwrap_err().to_string();
    for part in ["mqtt.max_packet_bytes is 65536 bytes", "67583 bytes (its max_payload)", "to 65535"] {
        assert!(error.contains(part), "{error}");
    }
    allowed.mqtt.max_packet_bytes = 65_535;
    assert!(bus.admits_bodies(&allowed).unwrap_err().to_string().contains("http.max_body_bytes"));
    (allowed.http.max_body_bytes, allowed.coap.max_body_bytes) = (65_535, 65_535);
    assert!(bus.admits_bodies(&allowed).unwrap_err().to_string().contains("api.max_body_bytes"));
    allowed.api.max_body_bytes = 65_535;
    bus.admits_bodies(&allowed).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_server_that_says_nothing_any_more_is_left() {
    let nats = start_nats().await;
    let bus = connect(&nats).await;
    let mut connection = bus.connection();
    let nats_process = rustix::process::Pid::from_raw(i32::try_from(nats.pid().unwrap()).unwrap()).unwrap();
    let signal = |signal| rustix::process::kill_process(nats_process, signal).unwrap();
    let stopped = std::time::Instant::now();
    signal(rustix::process::Signal::STOP);
    timeout(PATIENCE, connection.wait_for(|now| *now == Connection::Down)).await.unwrap().unwrap();
    assert!(stopped.elapsed().as_secs() < 8, "{:?}", stopped.elapsed());
    signal(rustix::process::Signal::CONT);
    timeout(PATIENCE, connection.wait_for(|now| *now != Connection::Down)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_new_password_needs_no_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (config, password_file) = (folder.path().join("nats.conf"), folder.path().join("password"));
    let lets_in = |password: &str| {
        let users = format!("authorization {{ users: [{{ user: us, password: {password} }}] }}");
        std::fs::write(&config, users).unwrap();
    };
    lets_in("first");
    std::fs::write(&password_file, "first\n").unwrap();
    let options = ServerOptions { config_file: Some(config.clone()), ..server_options() };
    let nats = NatsServer::start(&options).await.unwrap();
    let nats_process = rustix::process::Pid::from_raw(i32::try_from(nats.pid().unwrap()).unwrap()).unwrap();
    let us = bus::BusSettings {
        user: Some("us".into()),
        password_file: Some(password_file.clone()),
        ..settings(&nats)
    };
    let bus = Bus::connect(&us, "test").await.unwrap();
    let (health, mut connection) = (boot::Health::new(), bus.connection());
    let showing = tokio::spawn(bus.clone().show_connection(health.part("nats")));
    let says = async |words: &str| {
        let what = format!("it says {words}");
        eventually(&what, async || health.to_string().contains(words)).await;
    };

    // NATS ends the connections of those whose password has changed.
    lets_in("second");
    rustix::process::kill_process(nats_process, rustix::process::Signal::HUP).unwrap();
    says("NATS refuses this user and password").await;
    std::fs::remove_file(&password_file).unwrap();
    says("No such file").await;
    assert!(health.to_string().contains(&format!("nats.password_file {}", password_file.display())));
    std::fs::write(&password_file, "second").unwrap();
    timeout(PATIENCE, connection.wait_for(|now| *now == Connection::Up { epoch: 2 })).await.unwrap().unwrap();
    says("nats: ready").await;
    bus.tell("swb.anything", bytes::Bytes::new()).await.unwrap();
    showing.abort();
}
