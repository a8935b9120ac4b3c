//! Requests to the member system, with a login that is renewed when it has ended.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Why a request did not succeed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The system said no, or never saw the request: nothing was written.
    Refused(String),
    /// The session has ended: nothing was written.
    LoggedOut,
    /// Nobody knows whether something was written.
    Unknown(String),
}

impl Trouble {
    /// In words.
    pub(super) fn text(self) -> String {
        match self {
            Self::Refused(text) | Self::Unknown(text) => text,
            Self::LoggedOut => "the session has ended".to_owned(),
        }
    }
}

/// What a request carries.
#[derive(Debug)]
pub(super) enum Body {
    None,
    Json(Value),
    Bytes(Vec<u8>),
}

/// One person at one screen.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    user: String,
    password: String,
    token: Option<String>,
}

impl Client {
    /// Prepares requests to an address.
    pub(super) fn new(base: &str, user: String, password: String) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(15))
            .no_proxy()
            .build()
            .map_err(|error| format!("cannot prepare HTTP requests: {error}"))?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), user, password, token: None })
    }

    /// Who logs in.
    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// Says whether it has a login that is not known to have ended.
    pub(super) fn is_logged_in(&self) -> bool {
        self.token.is_some()
    }

    /// Logs in and returns the answer without the token.
    pub(super) async fn log_in(&mut self) -> Result<Value, Trouble> {
        let body = json!({ "user": self.user, "password": self.password });
        self.token = None;
        let mut answer = self.json(Method::POST, "/login", Body::Json(body)).await?;
        self.token = answer["token"].take().as_str().map(ToOwned::to_owned);
        Ok(answer)
    }

    /// Sends a request and returns its JSON answer.
    pub(super) async fn json(&mut self, method: Method, path: &str, body: Body) -> Result<Value, Trouble> {
        let bytes = self.bytes(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| Trouble::Unknown(format!("{path}: {error}")))
    }

    /// Sends a request and returns its answer as it is.
    pub(super) async fn bytes(&mut self, method: Method, path: &str, body: Body) -> Result<Vec<u8>, Trouble> {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let request = match body {
            Body::None => request,
            Body::Json(value) => request.json(&value),
            Body::Bytes(bytes) => request.body(bytes),
        };
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let sent = request.send().await.map_err(|error| lost(path, &error))?;
        let status = sent.status();
        let bytes = sent.bytes().await.map_err(|error| lost(path, &error))?;
        if status.is_success() { Ok(bytes.to_vec()) } else { Err(self.refused(path, status, &bytes)) }
    }

    fn refused(&mut self, path: &str, status: StatusCode, bytes: &[u8]) -> Trouble {
        let text = format!("{path}: {status} {}", String::from_utf8_lossy(bytes));
        if status == StatusCode::UNAUTHORIZED && self.token.take().is_some() {
            Trouble::LoggedOut
        } else if status.is_client_error() {
            Trouble::Refused(text)
        } else {
            Trouble::Unknown(text)
        }
    }
}

/// Only a connection that was never made proves that nothing was written.
fn lost(path: &str, error: &reqwest::Error) -> Trouble {
    let text = format!("{path}: {error}");
    if error.is_connect() { Trouble::Refused(text) } else { Trouble::Unknown(text) }
}
