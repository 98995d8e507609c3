//! WebSockets: after 101 the gateway carries bytes, and reads none of them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use tungstenite::{Message, WebSocket};

use crate::support::{Backend, DEADLINE, Gateway, gateway_to, service};

const UPGRADE: &str = "GET /api/chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                       X-Request-Id: tunnel\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A WebSocket server of another make, which says back what it hears.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut socket = tungstenite::accept(stream).expect("a handshake");
                while let Ok(message) = socket.read() {
                    if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

fn client(gateway: &Gateway) -> WebSocket<std::net::TcpStream> {
    let stream = std::net::TcpStream::connect(gateway.address).expect("a listener");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let (socket, answer) =
        tungstenite::client(format!("ws://{}/api/chat", gateway.address), stream).expect("a handshake");
    assert_eq!(answer.status(), 101);
    assert!(answer.headers().contains_key("x-request-id"));
    socket
}

#[test]
fn a_web_socket_carries_messages_both_ways() {
    let gateway = Gateway::start(&service("api", &[format!("http://{}", echo_server())], ""));
    let mut socket = client(&gateway);
    for index in 0..20 {
        let message = Message::text(format!("message {index}"));
        socket.send(message.clone()).expect("sent");
        assert_eq!(socket.read().expect("its echo"), message);
    }
    let message = Message::binary((0..300_000).map(|at| at as u8).collect::<Vec<_>>());
    socket.send(message.clone()).expect("sent");
    assert_eq!(socket.read().expect("its echo"), message);
    socket.send(Message::Ping(tungstenite::Bytes::from_static(b"are you there"))).expect("sent");
    assert_eq!(socket.read().expect("a pong"), Message::Pong(tungstenite::Bytes::from_static(b"are you there")));
    socket.close(None).expect("closing");
    while socket.read().is_ok() {}
    drop(socket);
    let line = gateway.log.wait_for(|line| line["status"] == 101);
    assert!(line["bytes_in"].as_u64() > Some(300_000) && line["bytes_out"].as_u64() > Some(300_000), "{line}");
}

#[test]
fn many_web_sockets_at_once() {
    let gateway = Gateway::start(&service("api", &[format!("http://{}", echo_server())], ""));
    let mut sockets: Vec<_> = (0..20).map(|_| client(&gateway)).collect();
    for (index, socket) in sockets.iter_mut().enumerate() {
        socket.send(Message::text(index.to_string())).expect("sent");
    }
    for (index, socket) in sockets.iter_mut().enumerate() {
        assert_eq!(socket.read().expect("its echo"), Message::text(index.to_string()));
    }
}

#[test]
fn bytes_that_come_with_the_heads_are_not_lost() {
    let backend = Backend::start(|connection| {
        connection.request()?;
        connection.send([SWITCH, "first words"].concat())?;
        let heard = connection.take(5)?;
        assert_eq!(heard, b"early");
        Ok(())
    });
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send([UPGRADE, "early"].concat());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(client.rest(), b"first words");
    let sent = backend.last();
    assert_eq!((sent.header("upgrade"), sent.header("connection")), (Some("websocket"), Some("Upgrade")));
    assert_eq!(sent.header("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
}

#[test]
fn either_side_may_finish_first() {
    // The client finishes, the backend answers afterwards.
    let backend = Backend::start(|connection| {
        connection.request()?;
        connection.send(SWITCH)?;
        let heard = connection.rest();
        connection.send([b"heard ", heard.as_slice()].concat())
    });
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send(UPGRADE);
    client.head();
    client.send("all there is");
    client.finish();
    assert_eq!(client.rest(), b"heard all there is");
    let line = gateway.logged("tunnel");
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&12.into(), &18.into()));

    // The backend finishes, the client goes on talking.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let gateway =
        Gateway::start(&service("api", &[format!("http://{}", listener.local_addr().expect("an address"))], ""));
    let backend = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the gateway connects");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("the head");
            head.push(byte[0]);
        }
        stream.write_all([SWITCH, "bye"].concat().as_bytes()).expect("sent");
        stream.shutdown(Shutdown::Write).expect("finished");
        let mut heard = String::new();
        stream.read_to_string(&mut heard).expect("the rest");
        heard
    });
    let mut client = gateway.connect();
    client.send(UPGRADE);
    client.head();
    assert_eq!(client.rest(), b"bye");
    client.send("still here");
    client.finish();
    assert_eq!(backend.join().expect("no panic"), "still here");
}

#[test]
fn a_tunnel_that_breaks_on_one_side_breaks_on_the_other() {
    let backend = Backend::start(|connection| {
        connection.request()?;
        connection.send(SWITCH)?;
        connection.take(4)?;
        connection.reset();
        Ok(())
    });
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    client.send(UPGRADE);
    client.head();
    client.send("over");
    assert_eq!(client.rest(), b"");
    gateway.logged("tunnel");
}

#[test]
fn an_idle_tunnel_ends() {
    let backend = Backend::start(|connection| {
        connection.request()?;
        connection.send(SWITCH)?;
        connection.rest();
        Ok(())
    });
    let gateway = Gateway::start(&service("api", &[backend.url()], "[services.api.timeouts]\nidle_body = \"400ms\""));
    let mut client = gateway.connect();
    client.send(UPGRADE);
    client.head();
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(200));
        client.send("x");
    }
    assert_eq!(client.rest(), b"");
    assert_eq!(gateway.logged("tunnel")["bytes_in"], 4, "traffic keeps it alive");
}

#[test]
fn a_backend_may_decline_to_switch() {
    let backend = Backend::answering("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno");
    let gateway = gateway_to(&backend);
    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send(UPGRADE);
        let answer = client.response();
        assert_eq!((answer.status, answer.text().as_str()), (426, "no"));
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn other_protocols_are_not_offered_to_the_backend() {
    // An h2c upgrade would let requests through that nobody has looked at.
    let backend = Backend::echo();
    let gateway = Gateway::start(&service("a", &[backend.url()], ""));
    let response = gateway.send(
        "GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
    );
    assert_eq!(response.status, 200);
    for absent in ["upgrade", "http2-settings", "connection"] {
        assert_eq!(backend.last().header(absent), None, "{absent}");
    }
}
