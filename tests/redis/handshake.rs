//! Who may connect, and where to.

use ringway::redis::client::{CallError, Client, Reason, Secret, Settings};
use ringway::redis::resp::Refusal;

use crate::server::RedisServer;
use crate::support::*;

fn with(server: &RedisServer, username: &str, password: &str) -> Settings {
    let mut settings = settings(server.address());
    settings.username = username.into();
    settings.password = Some(Secret::new(password));
    settings
}

#[test]
fn a_password_is_given() {
    let server = RedisServer::start(&["--requirepass", "open sesame"]);
    on_both_drivers(async || {
        let client = client(with(&server, "", "open sesame")).await;
        assert_eq!(ask(&client, &["ACL", "WHOAMI"]).await, said("default"));
        assert_eq!(ask(&client, &["CLIENT", "GETNAME"]).await, said("ringway"));
    });
}

#[test]
fn a_user_is_given_and_may_do_what_it_may() {
    let server =
        RedisServer::start(&["--user", "gateway", "on", ">pass word", "~rw:*", "+@all", "-@admin", "-flushall"]);
    on_both_drivers(async || {
        let client = client(with(&server, "gateway", "pass word")).await;
        assert_eq!(ask(&client, &["CONFIG", "GET", "x"]).await, Err(CallError::Refused(Refusal::NotPermitted)));
        assert_eq!(ask(&client, &["SET", "rw:a", "1"]).await, said("OK"));
        assert_eq!(ask(&client, &["SET", "other", "1"]).await, Err(CallError::Refused(Refusal::NotPermitted)));
        assert_eq!(ask(&client, &["FLUSHALL"]).await, Err(CallError::Refused(Refusal::NotPermitted)));
        assert_eq!(client.stats().refused(Refusal::NotPermitted), 3);
        // None of them is a reason to connect anew.
        assert_eq!((client.stats().connects.get(), client.generation()), (1, 1));
    });
}

#[test]
fn a_user_that_may_not_even_be_named_is_served() {
    let rules = ["--user", "narrow", "on", ">pw", "~*", "-@all", "+evalsha", "+eval", "+get"];
    let server = RedisServer::start(&rules);
    on_both_drivers(async || {
        let client = client(with(&server, "narrow", "pw")).await;
        assert_eq!(ask(&client, &["GET", "nothing"]).await, said("(other)"));
    });
}

/// A client that is refused, and what for; it comes in as soon as `remedy` was sent to the server.
fn check_refused(server: &RedisServer, settings: &Settings, reason: Reason, remedy: &[&str], undo: &[&str]) {
    on_both_drivers(async || {
        let client = Client::start(settings.clone(), &[], 1);
        down(&client, reason).await;
        assert_eq!(ask(&client, &["PING"]).await, Err(CallError::Down));
        assert!(!client.last_error().is_empty());
        assert!(!client.last_error().contains("wrong one"), "{}", client.last_error());
        let mut connection = server.connect();
        assert_eq!(connection.command(remedy), "+OK");
        up(&client).await;
        assert!(client.stats().connect_failures.get() >= 1);
        assert_eq!(connection.command(undo), "+OK");
    });
}

#[test]
fn wrong_credentials_are_tried_until_they_are_right() {
    let server = RedisServer::start(&["--requirepass", "right"]);
    let wrong = with(&server, "", "wrong one");
    let reason = Reason::Refused(Refusal::WrongPassword);
    let (set, unset) = (["ACL", "SETUSER", "default", ">wrong one"], ["ACL", "SETUSER", "default", "<wrong one"]);
    check_refused(&server, &wrong, reason, &set, &unset);

    let nobody = with(&server, "nobody", "wrong one");
    let set = ["ACL", "SETUSER", "nobody", "on", ">wrong one", "+@all", "~*"];
    check_refused(&server, &nobody, reason, &set, &["ACL", "SETUSER", "nobody", "off"]);

    let none = settings(server.address());
    let reason = Reason::Refused(Refusal::Unauthenticated);
    let (set, unset) = (["ACL", "SETUSER", "default", "nopass"], ["ACL", "SETUSER", "default", "resetpass", ">right"]);
    check_refused(&server, &none, reason, &set, &unset);
}

#[test]
fn a_database_is_chosen() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        server.command(&["FLUSHALL"]);
        let mut third = settings(server.address());
        third.database = 3;
        let client = client(third).await;
        assert_eq!(ask(&client, &["SET", "k", "v"]).await, said("OK"));
        let mut connection = server.connect();
        assert_eq!(connection.command(&["GET", "k"]), "(nil)");
        assert_eq!(connection.command(&["SELECT", "3"]), "+OK");
        assert_eq!(connection.command(&["GET", "k"]), "v");

        let mut beyond = settings(server.address());
        beyond.database = 99;
        let client = Client::start(beyond, &[], 1);
        down(&client, Reason::Refused(Refusal::Other)).await;
        assert!(client.last_error().contains("out of range"), "{}", client.last_error());
    });
}

#[test]
fn a_server_with_too_many_clients_is_tried_until_it_has_room() {
    let server = RedisServer::start(&[]);
    on_both_drivers(async || {
        let mut connection = server.connect();
        assert_eq!(connection.command(&["CONFIG", "SET", "maxclients", "1"]), "+OK");
        let client = Client::start(settings(server.address()), &[], 1);
        // Its words are lost when it closes before it has read ours.
        until(&client, "refused", |client| client.stats().connect_failures.get() >= 2).await;
        assert_eq!(connection.command(&["CONFIG", "SET", "maxclients", "100"]), "+OK");
        up(&client).await;
    });
}
