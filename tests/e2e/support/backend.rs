//! A backend that does exactly what a test says, on a thread for each connection.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::client::header;
use super::{DEADLINE, Gate, SMALL};

/// Where a test's backend listens, and what it saw.
pub struct Backend {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Request>>>,
    panicked: Arc<AtomicBool>,
}

/// A request as it came, its body decoded.
#[derive(Debug, Clone)]
pub struct Request {
    /// The head, as it came.
    pub head: String,
    pub body: Vec<u8>,
    /// What stood behind the body's last chunk.
    pub trailers: String,
}

impl Request {
    pub fn line(&self) -> &str {
        self.head.lines().next().expect("a first line")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

/// One connection, on the backend's side.
pub struct Connection {
    stream: Box<dyn Stream>,
    buf: Vec<u8>,
    /// Which connection it is, from 0.
    pub index: usize,
    requests: Arc<Mutex<Vec<Request>>>,
}

trait Stream: Read + Write + Send {
    /// The TCP socket, where it is one.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }

    fn stop_reading(&self) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn stop_reading(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Read)
    }
}

impl Stream for UnixStream {
    fn stop_reading(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Read)
    }
}

impl Backend {
    /// Every connection is handed to `script`; when it returns, the connection is closed.
    pub fn start(script: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static) -> Backend {
        Backend::start_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"), script)
    }

    /// The same, with connections whose kernel takes few bytes that the script has not read.
    pub fn start_small(script: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static) -> Backend {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        socket2::SockRef::from(&listener).set_recv_buffer_size(SMALL).expect("an option");
        Backend::start_on(listener, script)
    }

    /// The same, on a listener of the test's own.
    pub fn start_on(
        listener: TcpListener,
        script: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    ) -> Backend {
        let address = listener.local_addr().expect("an address");
        let backend =
            Backend { address, connections: Arc::default(), requests: Arc::default(), panicked: Arc::default() };
        let (connections, requests) = (Arc::clone(&backend.connections), Arc::clone(&backend.requests));
        let panicked = Arc::clone(&backend.panicked);
        let script = Arc::new(script);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                stream.set_nodelay(true).expect("an option");
                stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
                let index = connections.fetch_add(1, Ordering::SeqCst);
                let (script, panicked) = (Arc::clone(&script), Arc::clone(&panicked));
                let mut connection =
                    Connection { stream: Box::new(stream), buf: Vec::new(), index, requests: Arc::clone(&requests) };
                // A script ends with an error when the gateway closes; that is how most of them end.
                thread::spawn(move || {
                    let ended = panic::catch_unwind(AssertUnwindSafe(|| drop(script(&mut connection))));
                    panicked.fetch_or(ended.is_err(), Ordering::SeqCst);
                });
            }
        });
        backend
    }

    /// Answers every request with `answer`.
    pub fn answering(answer: impl Into<String>) -> Backend {
        Backend::answering_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"), answer)
    }

    /// The same, where the test says.
    pub fn answering_on(listener: TcpListener, answer: impl Into<String>) -> Backend {
        let answer = answer.into();
        Backend::start_on(listener, move |connection| {
            loop {
                connection.request()?;
                connection.send(&answer)?;
            }
        })
    }

    /// Answers with `ok` while `works`, and otherwise breaks off.
    pub fn fragile(works: &Arc<AtomicBool>) -> Backend {
        let works = Arc::clone(works);
        Backend::start(move |connection| {
            loop {
                connection.request()?;
                if !works.load(Ordering::SeqCst) {
                    return Ok(());
                }
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            }
        })
    }

    /// Answers every request with `ok`, one whose line has `slow` in it when the gate lets it pass.
    pub fn gated(gate: &Gate) -> Backend {
        let gate = gate.clone();
        Backend::start(move |connection| {
            loop {
                if connection.request()?.line().contains("slow") {
                    gate.pass();
                }
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            }
        })
    }

    /// Answers every request with its own line and body.
    pub fn echo() -> Backend {
        Backend::start(|connection| {
            loop {
                let request = connection.request()?;
                let mut body = request.line().as_bytes().to_vec();
                body.push(b'\n');
                body.extend_from_slice(&request.body);
                let is_head = request.line().starts_with("HEAD ");
                connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()))?;
                connection.send(if is_head { Vec::new() } else { body })?;
            }
        })
    }

    /// Takes requests and answers none.
    pub fn silent() -> Backend {
        Backend::start(|connection| {
            connection.request()?;
            connection.rest();
            Ok(())
        })
    }

    /// A backend on a Unix socket, with one connection after another.
    pub fn unix(path: &Path, script: impl Fn(&mut Connection) -> io::Result<()> + Send + 'static) {
        let listener = UnixListener::bind(path).expect("a free path");
        thread::spawn(move || {
            for (index, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let mut connection =
                    Connection { stream: Box::new(stream), buf: Vec::new(), index, requests: Arc::default() };
                // As above: most scripts end with an error.
                let _ = script(&mut connection);
            }
        });
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The requests seen so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }

    pub fn last(&self) -> Request {
        self.requests().pop().expect("a request")
    }
}

/// What a script found wrong fails its test.
impl Drop for Backend {
    fn drop(&mut self) {
        assert!(thread::panicking() || !self.panicked.load(Ordering::SeqCst), "a backend's script panicked");
    }
}

impl Connection {
    /// The next request, whole.
    pub fn request(&mut self) -> io::Result<Request> {
        let mut request = self.head()?;
        if let Some(length) = request.header("content-length") {
            let length = length.parse().expect("a number");
            request.body = self.take(length)?;
        } else if request.header("transfer-encoding") == Some("chunked") {
            while let data @ [_, ..] = self.chunk()?.as_slice() {
                request.body.extend_from_slice(data);
            }
            loop {
                let line = self.line()?;
                if line.is_empty() {
                    break;
                }
                request.trailers += &line;
                request.trailers.push('\n');
            }
        }
        self.requests.lock().expect("no panic").push(request.clone());
        Ok(request)
    }

    /// The next request's head alone; not recorded.
    pub fn head(&mut self) -> io::Result<Request> {
        loop {
            if let Some(end) = self.buf.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8(self.take(end + 4)?).expect("UTF-8");
                return Ok(Request { head, body: Vec::new(), trailers: String::new() });
            }
            self.fill()?;
        }
    }

    /// The next chunk's data; empty for the last one, whose trailers are left to be read.
    pub fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let line = self.line()?;
        let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("{line:?} is no chunk size"));
        if size == 0 {
            return Ok(Vec::new());
        }
        let mut data = self.take(size + 2)?;
        assert_eq!(data.split_off(size), b"\r\n");
        Ok(data)
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Closes at once, not when the script ends.
    pub fn close(&mut self) {
        self.stream = Box::new(UnixStream::pair().expect("two sockets").0);
    }

    /// Makes the close a reset.
    pub fn reset(&self) {
        let stream = self.stream.tcp().expect("TCP");
        socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("an option");
    }

    /// Takes no more bytes. On a Unix socket the gateway's next write fails, while what the script sends still arrives.
    pub fn stop_reading(&self) -> io::Result<()> {
        self.stream.stop_reading()
    }

    /// Whether a request begins within `patience`. A request that begins later finds the connection closed.
    pub fn waits_for_a_request(&mut self, patience: Duration) -> bool {
        let stream = self.stream.tcp().expect("TCP");
        if !self.buf.is_empty() {
            return true;
        }
        stream.set_read_timeout(Some(patience.max(Duration::from_micros(1)))).expect("a timeout");
        let begun = matches!(stream.peek(&mut [0]), Ok(1));
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        begun
    }

    /// Waits until the gateway closes; what it says until then is returned.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill().is_ok() {}
        std::mem::take(&mut self.buf)
    }

    /// What one receive brings.
    pub fn piece(&mut self) -> io::Result<Vec<u8>> {
        self.fill()?;
        Ok(std::mem::take(&mut self.buf))
    }

    pub fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buf.len() < length {
            self.fill()?;
        }
        let rest = self.buf.split_off(length);
        Ok(std::mem::replace(&mut self.buf, rest))
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buf.windows(2).position(|two| two == b"\r\n") {
                let line = self.take(end + 2)?;
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut piece = [0; 64 * 1024];
        match self.stream.read(&mut piece)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.buf.extend_from_slice(&piece[..read]);
                Ok(())
            }
        }
    }
}
