//! The five workflows, chosen by chance.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Body, Client, Trouble};
use crate::error::AnyError;
use crate::ledger::{Counter, Facts, Ledger, Line, Session, Write};
use crate::random::{self, Dice};
use crate::uploads;

/// Someone who works and writes everything down.
#[derive(Debug)]
pub(super) struct Worker {
    client: Client,
    ledger: Arc<Ledger>,
    dice: Dice,
    /// Makes references unique across runs.
    prefix: String,
    upload_bytes: usize,
    done: BTreeMap<&'static str, u64>,
}

/// An outcome: `Err` of the outer kind if the ledger failed, of the inner kind if the system did.
type Outcome = Result<Result<(), Trouble>, AnyError>;

impl Worker {
    /// Prepares for work.
    pub(super) fn new(client: Client, ledger: Arc<Ledger>, upload_bytes: usize) -> Result<Self, AnyError> {
        let prefix = format!("traffic-{}", random::hex(&random::bytes::<4>()?));
        Ok(Self { client, ledger, dice: Dice::new()?, prefix, upload_bytes, done: BTreeMap::new() })
    }

    /// Says how much was done.
    pub(super) fn summary(&self) -> String {
        let parts: Vec<_> = self.done.iter().map(|(what, count)| format!("{what} {count}")).collect();
        format!("done: {}", parts.join(", "))
    }

    /// Does one thing; returns what went wrong with the system.
    pub(super) async fn act(&mut self) -> Result<Option<String>, AnyError> {
        let (what, outcome) = if self.client.is_logged_in() {
            match self.dice.below(100) {
                0..40 => ("payments", self.pay().await?),
                40..55 => ("searches", self.search().await.map(drop)),
                55..65 => ("feeds", self.look().await),
                65..78 => ("uploads", self.upload().await?),
                78..93 => ("decisions", self.decide().await?),
                _ => ("logins", self.log_in().await?),
            }
        } else {
            ("logins", self.log_in().await?)
        };
        match outcome {
            Ok(()) => *self.done.entry(what).or_default() += 1,
            Err(Trouble::LoggedOut) => *self.done.entry("sessions lost").or_default() += 1,
            Err(trouble) => return Ok(Some(trouble.text())),
        }
        Ok(None)
    }

    async fn log_in(&mut self) -> Outcome {
        let user = self.client.user().to_owned();
        let seq = self.ledger.begin(|_| Write::Login { user })?;
        let result = self.client.log_in().await;
        self.note(seq, result, |answer| {
            let session = Session {
                key: answer["session_key"].as_str()?.to_owned(),
                expires_at: answer["expires_at"].as_str()?.parse().ok()?,
            };
            Some(Facts { counter: counter(answer), session: Some(session), ..Facts::default() })
        })
    }

    async fn pay(&mut self) -> Outcome {
        let member_id = match self.someone("").await {
            Ok(id) => id,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let amount_cents = 100 + i64::try_from(self.dice.below(50_000))?;
        let method = ["cash", "card", "transfer"][usize::try_from(self.dice.below(3))?];
        let mut reference = String::new();
        let seq = self.ledger.begin(|seq| {
            reference = format!("{}-{seq}", self.prefix);
            Write::Payment { reference: reference.clone(), member_id, amount_cents }
        })?;
        let body = json!({
            "member_id": member_id, "amount_cents": amount_cents, "method": method, "reference": reference,
        });
        let result = self.client.json(Method::POST, "/payments", Body::Json(body)).await;
        self.note(seq, result, |answer| {
            Some(Facts { id: Some(answer["id"].as_i64()?), counter: counter(answer), ..Facts::default() })
        })
    }

    async fn decide(&mut self) -> Outcome {
        let (from, to) = [("pending", "approved"), ("approved", "suspended"), ("suspended", "approved")]
            [usize::try_from(self.dice.below(3))?];
        let member_id = match self.someone(from).await {
            Ok(id) => id,
            // Nobody is left in that status, which is no trouble.
            Err(Trouble::Refused(_)) => return Ok(Ok(())),
            Err(trouble) => return Ok(Err(trouble)),
        };
        let mut reference = String::new();
        let seq = self.ledger.begin(|seq| {
            reference = format!("{}-{seq}", self.prefix);
            Write::Decision { reference: reference.clone(), member_id, status: to.to_owned() }
        })?;
        let path = format!("/members/{member_id}/status");
        let body = Body::Json(json!({ "status": to, "reference": reference }));
        let result = self.client.json(Method::POST, &path, body).await;
        self.note(seq, result, |answer| {
            Some(Facts { id: Some(answer["audit_id"].as_i64()?), ..Facts::default() })
        })
    }

    async fn upload(&mut self) -> Outcome {
        let content = self.dice.bytes(self.upload_bytes);
        let sha256 = uploads::checksum(&content);
        let mut reference = String::new();
        let seq = self.ledger.begin(|seq| {
            reference = format!("{}-{seq}", self.prefix);
            let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
            Write::Upload { reference: reference.clone(), sha256: sha256.clone(), bytes }
        })?;
        let path = format!("/media?title=Upload+{seq}&reference={reference}");
        let result = self.client.json(Method::POST, &path, Body::Bytes(content)).await;
        self.note(seq, result, |answer| {
            let path = answer["path"].as_str()?.to_owned();
            Some(Facts { id: Some(answer["id"].as_i64()?), path: Some(path), ..Facts::default() })
        })
    }

    async fn search(&mut self) -> Result<Value, Trouble> {
        let words = ["ada", "hahn", "member1", "gwen", "o"];
        let word = words[usize::try_from(self.dice.below(5)).unwrap_or(0)];
        self.client.json(Method::GET, &format!("/members?q={word}"), Body::None).await
    }

    /// Reads the feed and one of its files, which must be what the feed says.
    async fn look(&mut self) -> Result<(), Trouble> {
        let feed = self.client.json(Method::GET, "/feed", Body::None).await?;
        let items = feed["items"].as_array().cloned().unwrap_or_default();
        if items.is_empty() {
            return Ok(());
        }
        let item = &items[usize::try_from(self.dice.below(items.len() as u64)).unwrap_or(0)];
        let path = format!("/media/{}", item["id"]);
        let bytes = self.client.bytes(Method::GET, &path, Body::None).await?;
        if item["sha256"].as_str() == Some(uploads::checksum(&bytes).as_str()) {
            Ok(())
        } else {
            Err(Trouble::Refused(format!("{path} is not what the feed says")))
        }
    }

    /// Finds some member, in a status if one is given.
    async fn someone(&mut self, status: &str) -> Result<i64, Trouble> {
        let filter = if status.is_empty() { String::new() } else { format!("&status={status}") };
        let digit = self.dice.below(10);
        let path = format!("/members?q={digit}&limit=200{filter}");
        let found = self.client.json(Method::GET, &path, Body::None).await?;
        let members = found["members"].as_array().cloned().unwrap_or_default();
        let nobody = || Trouble::Refused(format!("{path} finds nobody"));
        if members.is_empty() {
            return Err(nobody());
        }
        let chosen = usize::try_from(self.dice.below(members.len() as u64)).unwrap_or(0);
        members[chosen]["id"].as_i64().ok_or_else(nobody)
    }

    /// Writes down how a write ended. An answer that does not say what was done proves nothing.
    fn note(
        &self,
        seq: u64,
        result: Result<Value, Trouble>,
        facts: impl FnOnce(&Value) -> Option<Facts>,
    ) -> Outcome {
        let at = Timestamp::now();
        let (line, result) = match result {
            Ok(answer) => match facts(&answer) {
                Some(facts) => (Line::Acknowledged { seq, at, facts }, Ok(())),
                None => {
                    let reason = format!("the answer lacks what it should say: {answer}");
                    (Line::Unknown { seq, at, reason: reason.clone() }, Err(Trouble::Unknown(reason)))
                }
            },
            Err(Trouble::Unknown(reason)) => {
                (Line::Unknown { seq, at, reason: reason.clone() }, Err(Trouble::Unknown(reason)))
            }
            Err(Trouble::Refused(reason)) => {
                (Line::Refused { seq, at, reason: reason.clone() }, Err(Trouble::Refused(reason)))
            }
            Err(Trouble::LoggedOut) => {
                let reason = "the session had ended".to_owned();
                (Line::Refused { seq, at, reason }, Err(Trouble::LoggedOut))
            }
        };
        self.ledger.write(&line)?;
        Ok(result)
    }
}

fn counter(answer: &Value) -> Option<Counter> {
    let counter = answer.get("counter")?;
    Some(Counter { key: counter["key"].as_str()?.to_owned(), value: counter["value"].as_i64()? })
}
