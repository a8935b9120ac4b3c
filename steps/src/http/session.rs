//! Sends the requests of one flow: with cookies kept, on one host, to one address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lifeboat_engine::resource::{Http, System};
use lifeboat_engine::step::{StepContext, StepError};
use reqwest::cookie::Jar;
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Response, Url};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::answer::Answer;
use super::codes;
use super::request::Ready;

/// How much of a body conditions see.
const BODY_LIMIT: usize = 1024 * 1024;
const MOST_REDIRECTS: usize = 10;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// It may come up yet.
    NotUp(String),
    /// Waiting will not help.
    Failed(StepError),
}

/// A browser, as it were: cookies are kept between requests.
pub(super) struct Session {
    base: String,
    following: Client,
    plain: Client,
}

/// Returns the web service of a name.
pub(super) fn target<'a>(ctx: &'a StepContext, name: &str) -> Result<&'a Http, StepError> {
    ctx.system(name, |system| match system {
        System::Http(http) => Some(http),
        _ => None,
    })
}

impl Session {
    /// Begins a session. With `address`, connections go there whatever the host's name resolves to.
    pub(super) fn new(http: &Http, limit: Duration, address: Option<SocketAddr>) -> Result<Self, StepError> {
        let url = Url::parse(&http.url).map_err(|error| {
            StepError::permanent(codes::LB1603, format!("`{}` is no address of a web service", http.url))
                .help("correct `url` of the resource in the environment's file")
                .caused_by(&error)
        })?;
        let jar = Arc::new(Jar::default());
        let host = url.host_str().unwrap_or_default().to_owned();
        let build = |policy: Policy| {
            let builder: ClientBuilder = Client::builder()
                .cookie_provider(Arc::clone(&jar))
                .redirect(policy)
                .timeout(limit)
                .no_proxy()
                .user_agent(concat!("lifeboat/", env!("CARGO_PKG_VERSION")));
            let builder = match address {
                Some(address) => builder.resolve(&host, address),
                None => builder,
            };
            builder.build().map_err(|error| {
                StepError::permanent(codes::LB1603, "the HTTP client cannot be set up").caused_by(&error)
            })
        };
        let base = http.url.trim_end_matches('/').to_owned();
        Ok(Self { base, following: build(same_host(url))?, plain: build(Policy::none())? })
    }

    /// Sends one request and reads the answer.
    pub(super) async fn send(&self, ready: Ready, follow: bool) -> Result<Answer, NoAnswer> {
        let client = if follow { &self.following } else { &self.plain };
        let url = format!("{}{}", self.base, ready.path);
        let mut request = client.request(ready.method, url);
        if let Some((kind, body)) = ready.body {
            request = request.header("content-type", kind).body(body);
        }
        for (name, value) in ready.headers {
            request = request.header(name, value);
        }
        let begun = Instant::now();
        let response = request.send().await.map_err(|error| no_answer(error.without_url()))?;
        let led_away = if follow { led_away(&response) } else { None };
        let (status, headers) = (response.status().as_u16(), headers(&response));
        let (body, bytes, sha256) = read(response).await.map_err(|error| no_answer(error.without_url()))?;
        Ok(Answer { status, headers, body, bytes, sha256, elapsed: begun.elapsed(), led_away })
    }
}

fn same_host(own: Url) -> Policy {
    let of = |url: &Url| (url.host_str().map(ToOwned::to_owned), url.port_or_known_default());
    let own = of(&own);
    Policy::custom(move |attempt| {
        if attempt.previous().len() > MOST_REDIRECTS {
            attempt.error("too many redirects")
        } else if of(attempt.url()) == own {
            attempt.follow()
        } else {
            attempt.stop()
        }
    })
}

/// Returns where an answer leads that was not followed.
fn led_away(response: &Response) -> Option<String> {
    let location = response.headers().get("location")?.to_str().ok()?;
    let target = response.url().join(location).ok()?;
    // Only scheme and host: a query may hold a token.
    response.status().is_redirection().then(|| target.origin().ascii_serialization())
}

fn headers(response: &Response) -> Map<String, Value> {
    let mut headers: Map<String, Value> = Map::new();
    for (name, value) in response.headers() {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let joined = match headers.get(name.as_str()).and_then(Value::as_str) {
            Some(before) => format!("{before}, {value}"),
            None => value,
        };
        headers.insert(name.as_str().to_owned(), joined.into());
    }
    headers
}

async fn read(mut response: Response) -> Result<(String, u64, String), reqwest::Error> {
    let (mut body, mut bytes, mut hash) = (Vec::new(), 0, Sha256::new());
    while let Some(chunk) = response.chunk().await? {
        bytes += chunk.len() as u64;
        hash.update(&chunk);
        let room = BODY_LIMIT - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((String::from_utf8_lossy(&body).into_owned(), bytes, sha256))
}

fn no_answer(error: reqwest::Error) -> NoAnswer {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    // What is wrong with TLS, or a circle of redirects, does not mend itself.
    let of_tls = crate::tls::find::<rustls::Error>(&error).and_then(remedy);
    if of_tls.is_some() || error.is_redirect() || error.is_builder() {
        let failed = StepError::permanent(codes::LB1601, format!("the web service cannot be used: {text}"));
        return NoAnswer::Failed(match of_tls {
            Some(help) => failed.help(help),
            None => failed,
        });
    }
    NoAnswer::NotUp(text)
}

/// Says what to do about a problem with TLS that lasts; `None` for one that may pass.
fn remedy(error: &rustls::Error) -> Option<&'static str> {
    use rustls::CertificateError as E;
    Some(match error {
        rustls::Error::InvalidCertificate(why) => match why {
            E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. } => {
                "renew the certificate at the server and let it read it again, or set this machine's clock if that is wrong"
            }
            E::NotValidForName | E::NotValidForNameContext { .. } => {
                "give `url` a name that is in the certificate; `address: IP:PORT` of the step goes to a certain machine under \
                 that name"
            }
            E::UnknownIssuer => {
                "if the authority is one of your own, add its certificate to those that this system trusts \
                 (`update-ca-certificates`, `update-ca-trust`), or start lifeboat with SSL_CERT_FILE=/its/certificate.pem"
            }
            _ => {
                "have it issued again, as X.509 version 3, for a server, by an authority that is trusted here"
            }
        },
        rustls::Error::InvalidMessage(_) => {
            "the server speaks no TLS at that port: write `http://`, or give `url` the port of `https://`"
        }
        _ => return None,
    })
}
