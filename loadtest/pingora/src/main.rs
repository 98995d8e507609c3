//! Pingora as a reverse proxy that identifies requests and tells the backend of the client, and neither counts nor logs: `pingora-peer PORT
//! BACKEND_PORT`, both on loopback; one thread; runs until it is killed.

use async_trait::async_trait;
use http::Uri;
use pingora_core::prelude::{HttpPeer, Result, Server};
use pingora_core::server::configuration::ServerConf;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};
use uuid::Uuid;

/// Forwards `/api/...` to the backend, without the prefix.
struct Forward {
    backend: u16,
}

/// What is remembered of a request: its id.
type Id = String;

#[async_trait]
impl ProxyHttp for Forward {
    type CTX = Id;

    fn new_ctx(&self) -> Id {
        Uuid::new_v4().simple().to_string()
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut Id) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(("127.0.0.1", self.backend), false, String::new())))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        id: &mut Id,
    ) -> Result<()> {
        if let Some(rest) = request.uri.path_and_query().and_then(|path| path.as_str().strip_prefix("/api")) {
            request.set_uri(rest.parse::<Uri>().unwrap_or_default());
        }
        if let Some(address) = session.client_addr().and_then(|address| address.as_inet()) {
            request.insert_header("x-forwarded-for", address.ip().to_string())?;
        }
        if let Some(host) = request.headers.get("host").cloned() {
            request.insert_header("x-forwarded-host", host)?;
        }
        request.insert_header("x-forwarded-proto", "http")?;
        request.insert_header("x-request-id", id.as_str())
    }

    async fn response_filter(&self, _: &mut Session, response: &mut ResponseHeader, id: &mut Id) -> Result<()> {
        response.insert_header("x-request-id", id.as_str())
    }
}

fn main() -> Result<()> {
    let ports: Vec<u16> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let [port, backend] = ports[..] else {
        panic!("usage: pingora-peer PORT BACKEND_PORT");
    };
    let conf = ServerConf { threads: 1, work_stealing: false, upstream_keepalive_pool_size: 2048, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Forward { backend });
    service.add_tcp(&format!("127.0.0.1:{port}"));
    server.add_service(service);
    server.run_forever()
}
