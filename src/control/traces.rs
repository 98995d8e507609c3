//! Makes spans of what the workers record of traced requests, and sends them to a collector (OTLP over HTTP).
//!
//! Names and attributes are those of OpenTelemetry's semantic conventions for HTTP. A collector that is slow or away costs
//! spans, which are counted: workers do not wait, and what they record meanwhile has a maximum.

mod convert;

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::KeyValue;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::config::Tracing;
use crate::telemetry::labels::Labels;
use crate::telemetry::spans::{LostSpans, SpanReceiver};

/// How often the workers' records are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The most requests whose spans go out at once.
const BATCH: usize = 512;

/// How long the last spans may take when the process ends.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// The pause after a batch that was not taken; it doubles with each, up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The longest answer of a collector that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// How often the log is told that the collector still takes nothing.
const COMPLAIN_EVERY: Duration = Duration::from_secs(600);

/// Sends spans.
#[derive(Debug)]
pub struct Traces {
    exporter: opentelemetry_otlp::SpanExporter,
    endpoint: String,
    trouble: Arc<Mutex<Option<String>>>,
    labels: Arc<Labels>,
    receivers: Vec<SpanReceiver>,
    lost: Arc<LostSpans>,
}

/// The client that other fetches use too. The exporter tries again where that makes sense, within its time.
#[derive(Debug)]
struct Client {
    client: reqwest::Client,
    /// Why the last batch did not get through: the exporter does not say.
    trouble: Arc<Mutex<Option<String>>>,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let result = self.send(request).await;
        if let Err(error) = &result {
            // Without the address, which the log has beside it.
            let causes = std::iter::successors(error.source(), |&cause| cause.source());
            let text = causes.map(|cause| format!(": {cause}")).collect::<String>();
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("no answer{text}"));
        }
        Ok(result?)
    }
}

impl Client {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, reqwest::Error> {
        let mut answer = self.client.execute(request.try_into()?).await?;
        let mut response = Response::builder().status(answer.status());
        if let Some(headers) = response.headers_mut() {
            headers.clone_from(answer.headers());
        }
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                // What it said beside the status is of no use then.
                body.clear();
                break;
            }
            body.extend_from_slice(&piece);
        }
        Ok(response.body(body.into()).expect("a status and header fields that came"))
    }
}

impl Traces {
    /// An exporter of what `receivers` bring, as `settings` say. What it cannot get rid of is counted in `lost`.
    ///
    /// # Errors
    /// No HTTP client can be had.
    pub fn new(
        settings: &Tracing,
        labels: Arc<Labels>,
        receivers: Vec<SpanReceiver>,
        lost: Arc<LostSpans>,
    ) -> Result<Traces, String> {
        let mut headers = reqwest::header::HeaderMap::new();
        if let Some(authorization) = &settings.authorization {
            let mut value =
                reqwest::header::HeaderValue::from_str(authorization.expose()).map_err(|error| error.to_string())?;
            value.set_sensitive(true);
            headers.insert(reqwest::header::AUTHORIZATION, value);
        }
        let client = reqwest::Client::builder()
            .default_headers(headers)
            .timeout(settings.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| error.to_string())?;
        let (endpoint, trouble) = (format!("{}/v1/traces", settings.endpoint), Arc::default());
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(Client { client, trouble: Arc::clone(&trouble) })
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&endpoint)
            .with_timeout(settings.timeout)
            .build();
        let mut exporter = exporter.map_err(|error| error.to_string())?;
        let resource = Resource::builder_empty().with_attributes([
            KeyValue::new("service.name", settings.service_name.clone()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", format!("{:032x}", fastrand::u128(..))),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ]);
        exporter.set_resource(&resource.build());
        Ok(Traces { exporter, endpoint, trouble, labels, receivers, lost })
    }

    /// Sends spans until `stop` changes, and then what is left.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut trouble = Trouble::default();
        let keep_sending = async {
            loop {
                sleep(trouble.pause.unwrap_or(LOOK_EVERY)).await;
                self.send_all(&mut trouble).await;
            }
        };
        tokio::select! {
            () = keep_sending => {}
            // One whose other end is gone has changed for good.
            _ = stop.changed() => {}
        }
        // Whatever comes of it, the process ends.
        let _ = timeout(FLUSH_MAX, self.send_all(&mut trouble)).await;
    }

    /// Sends what there is, until there is no more or it is not taken.
    async fn send_all(&mut self, trouble: &mut Trouble) {
        loop {
            let spans = self.take();
            if spans.is_empty() {
                return;
            }
            let count = spans.len();
            match self.exporter.export(spans).await {
                Ok(()) => trouble.is_over(),
                Err(error) => {
                    self.lost.add(count);
                    let known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
                    let error = known.unwrap_or_else(|| error.to_string());
                    return trouble.note(&self.endpoint, &error, count);
                }
            }
        }
    }

    /// The spans of the next requests of all workers.
    fn take(&mut self) -> Vec<SpanData> {
        let mut spans = Vec::new();
        for receiver in &mut self.receivers {
            for record in std::iter::from_fn(|| receiver.pop().ok()).take(BATCH) {
                convert::spans(&record, &self.labels, &mut spans);
            }
        }
        spans
    }
}

/// A collector that takes nothing.
#[derive(Debug, Default)]
struct Trouble {
    pause: Option<Duration>,
    complained: Option<Instant>,
    lost: usize,
}

impl Trouble {
    fn note(&mut self, endpoint: &str, error: &str, lost: usize) {
        self.lost += lost;
        self.pause = Some(self.pause.map_or(PAUSE, |pause| (pause * 2).min(PAUSE_MAX)));
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            tracing::warn!(endpoint, error, "the collector does not take spans; they are lost until it does");
            self.complained = Some(Instant::now());
        }
    }

    fn is_over(&mut self) {
        if self.complained.take().is_some() {
            tracing::info!(lost = self.lost, "the collector takes spans again");
        }
        *self = Trouble::default();
    }
}
