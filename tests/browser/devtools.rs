//! A real headless Chromium, driven over the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/): opens one
//! page, asks it things, takes its picture, and notes what it complained about and which addresses it asked.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};

/// How long the browser may take for anything.
const PATIENCE: Duration = Duration::from_secs(40);

const OPTIONS: [&str; 16] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",
    "--password-store=basic",
    "--remote-debugging-port=0",
];

/// A browser with one page; it ends with this, or with the thread that started it.
pub struct Page {
    process: Child,
    home: PathBuf,
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
    session: String,
    calls: u64,
    /// What the page logged as an error, was refused by its policy, or threw.
    pub complaints: Vec<String>,
    /// The address of everything that it asked for.
    pub asked: Vec<String>,
}

impl Page {
    /// Opens `url`.
    pub fn open(url: &str) -> Page {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ringway-page-{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let home = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&home).expect("a writable folder for temporary files");
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "chromium"])
            .args(OPTIONS)
            .arg(format!("--user-data-dir={}/profile", home.display()))
            .arg("about:blank")
            .env("HOME", &home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("chromium and setpriv are installed");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("DevTools listening on ").map(str::to_owned))
            .expect("the browser says where it listens");
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let (mut socket, _) = tungstenite::connect(address).expect("the browser answers");
        if let MaybeTlsStream::Plain(stream) = socket.get_mut() {
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        }
        let mut page =
            Page { process, home, socket, session: String::new(), calls: 0, complaints: Vec::new(), asked: Vec::new() };
        let target = page.call("Target.createTarget", &json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = page.call("Target.attachToTarget", &json!({ "targetId": target, "flatten": true }));
        page.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Network", "Log", "Audits"] {
            page.call(&format!("{domain}.enable"), &json!({}));
        }
        page.size(1440, 900);
        page.call("Page.navigate", &json!({ "url": url }));
        page
    }

    /// Lays the page out anew, in CSS pixels.
    pub fn size(&mut self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// Prefers `light` or `dark` from now on.
    pub fn prefer(&mut self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", &features);
    }

    /// What `expression` comes to in the page.
    pub fn ask(&mut self, expression: &str) -> Value {
        self.try_ask(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    fn try_ask(&mut self, expression: &str) -> Result<Value, Value> {
        let question = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", &question);
        match answer["exceptionDetails"].take() {
            Value::Null => Ok(answer["result"]["value"].take()),
            exception => Err(exception),
        }
    }

    /// The same as text.
    pub fn text(&mut self, expression: &str) -> String {
        self.ask(expression).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until `expression` is true; while it throws, what it asks about may not have been loaded yet.
    pub fn until(&mut self, expression: &str) {
        let end = Instant::now() + PATIENCE;
        while self.try_ask(expression) != Ok(Value::Bool(true)) {
            assert!(
                Instant::now() < end,
                "waited in vain until {expression}; the page says\n{}\n{:?}",
                self.text("document.body.innerText"),
                self.complaints
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Writes what is seen to `target/screenshots/<name>.png`; `whole`: with what is below the window's edge.
    pub fn picture(&mut self, name: &str, whole: bool) {
        let options = json!({ "format": "png", "captureBeyondViewport": whole });
        let image = self.call("Page.captureScreenshot", &options);
        let bytes = STANDARD.decode(image["data"].as_str().expect("a picture")).expect("base64");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
        std::fs::create_dir_all(&folder).expect("a writable folder");
        std::fs::write(folder.join(format!("{name}.png")), bytes).expect("a writable folder");
    }

    /// Presses a key, named as in `KeyboardEvent.key`.
    pub fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", &json!({ "type": kind, "key": key }));
        }
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.calls += 1;
        let id = self.calls;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.as_str().into();
        }
        self.socket.send(Message::text(message.to_string())).expect("the browser listens");
        loop {
            let message = match self.socket.read() {
                Ok(Message::Text(text)) => serde_json::from_str::<Value>(&text).expect("JSON"),
                Ok(_) => continue,
                Err(error) => panic!("{method}: the browser does not answer: {error}"),
            };
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    fn note(&mut self, event: &Value) {
        let about = &event["params"];
        match event["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                self.asked.push(about["request"]["url"].as_str().unwrap_or_default().to_owned())
            }
            Some("Runtime.consoleAPICalled") if about["type"] == "error" || about["type"] == "warning" => {
                self.complaints.push(about["args"].to_string())
            }
            Some("Runtime.exceptionThrown") => self.complaints.push(about["exceptionDetails"].to_string()),
            // A connection that is refused is an error of the network's.
            Some("Log.entryAdded") if about["entry"]["level"] == "error" && about["entry"]["source"] != "network" => {
                self.complaints.push(about["entry"].to_string())
            }
            Some("Audits.issueAdded") if about["issue"]["code"] == "ContentSecurityPolicyIssue" => {
                self.complaints.push(about["issue"].to_string())
            }
            _ => {}
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // The group is the browser's own.
        let group = format!("-{}", self.process.id());
        let _ = Command::new("sh").args(["-c", "kill -KILL \"$0\"", &group]).status();
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.home);
    }
}
