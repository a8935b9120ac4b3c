use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::durable;
use super::error::Error;
use crate::crash::{self, Point};
use crate::model::request::Request;

/// Names one request: [`crate::journal::Journal::append_for`] stores it, so that no request counts
/// twice.
pub type RequestId = Uuid;

/// A request is a few lines of text; what is larger is something else.
const SIZE_LIMIT: u64 = 1 << 20;

/// Where other processes leave requests to the owner of a run.
#[derive(Clone, Debug)]
pub struct Inbox {
    dir: PathBuf,
}

/// A request that waits to be turned into events.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    pub id: RequestId,
    pub request: Request,
}

impl Inbox {
    pub(super) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Leaves a request; it survives a power cut when this returns.
    pub fn send(&self, request: &Request) -> Result<RequestId, Error> {
        let id = Uuid::now_v7();
        let text = serde_json::to_vec(request).expect("a request is plain text and numbers");
        durable::replace(&self.file(id), &text)?;
        Ok(id)
    }

    /// Returns what waits, oldest first. A file that is no request is set aside as `.refused` and reported once. One that cannot
    /// be read at this moment stays where it is: it may be a decision that counts.
    pub fn pending(&self) -> Result<Vec<Result<Pending, Error>>, Error> {
        let mut ids = self.waiting()?;
        // Ids of version 7 sort by time.
        ids.sort();
        Ok(ids.into_iter().filter_map(|id| self.take(id).transpose()).collect())
    }

    /// Returns the ids of what waits, for those who only look: nothing is read, and nothing set aside.
    pub fn waiting(&self) -> Result<Vec<RequestId>, Error> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))? {
            let name = entry.map_err(Error::io("read", &self.dir))?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json"));
            ids.extend(id.and_then(|id| id.parse::<Uuid>().ok()));
        }
        Ok(ids)
    }

    /// Returns whether a request still waits.
    pub fn contains(&self, id: RequestId) -> Result<bool, Error> {
        let path = self.file(id);
        path.try_exists().map_err(Error::io("read", &path))
    }

    /// Removes a request whose events are durable. It is no error if it is gone.
    pub fn remove(&self, id: RequestId) -> Result<(), Error> {
        let path = self.file(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
            _ => {
                crash::point(Point::RequestForgotten);
                Ok(())
            }
        }
    }

    fn take(&self, id: RequestId) -> Result<Option<Pending>, Error> {
        let path = self.file(id);
        let Some(text) = read(&path).map_err(Error::io("read", &path))? else { return Ok(None) };
        match parse(&text) {
            Ok(request) => Ok(Some(Pending { id, request })),
            Err(reason) => {
                let aside = path.with_extension("refused");
                fs::rename(&path, &aside).map_err(Error::io("set aside", &path))?;
                Err(Error::BadRequest { path: aside, reason })
            }
        }
    }

    fn file(&self, id: RequestId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

/// Reads a file, no further than one byte beyond what a request may have; `None` if it is gone.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut text = Vec::new();
    file.take(SIZE_LIMIT + 1).read_to_end(&mut text)?;
    Ok(Some(text))
}

fn parse(text: &[u8]) -> Result<Request, String> {
    if text.len() as u64 > SIZE_LIMIT {
        return Err("it is too large".to_owned());
    }
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::test_support::{TickClock, declared, header, person};
    use crate::journal::{Journal, Reader};
    use crate::model::EventKind;
    use crate::model::event::Decision;

    fn note(text: &str) -> Request {
        Request::Decide { by: person(), decision: Decision::Note { text: text.to_owned() } }
    }

    fn inbox() -> (tempfile::TempDir, Inbox) {
        let dir = tempfile::tempdir().unwrap();
        let inbox = Inbox::at(dir.path().to_owned());
        (dir, inbox)
    }

    #[test]
    fn requests_come_in_the_order_they_were_left() {
        let (dir, inbox) = inbox();
        let ids: Vec<_> = ["a", "b", "c"].iter().map(|text| inbox.send(&note(text)).unwrap()).collect();
        fs::write(dir.path().join(".half.json.tmp"), "{").unwrap();
        let pending: Vec<_> = inbox.pending().unwrap().into_iter().map(Result::unwrap).collect();
        let expected =
            ids.iter().zip(["a", "b", "c"]).map(|(id, text)| Pending { id: *id, request: note(text) });
        assert!(pending.into_iter().eq(expected));
        inbox.remove(ids[0]).unwrap();
        inbox.remove(ids[0]).unwrap();
        assert_eq!(inbox.pending().unwrap().len(), 2);
    }

    #[test]
    fn what_is_no_request_is_set_aside_and_reported_once() {
        let (dir, inbox) = inbox();
        let bad = dir.path().join(format!("{}.json", Uuid::now_v7()));
        fs::write(&bad, r#"{"request":"explode"}"#).unwrap();
        inbox.send(&note("good")).unwrap();
        assert_eq!(inbox.waiting().unwrap().len(), 2);
        assert!(bad.exists(), "whoever only looks leaves it to the one who takes it");
        let pending = inbox.pending().unwrap();
        assert!(matches!(&pending[0], Err(Error::BadRequest { reason, .. }) if reason.contains("explode")));
        assert_eq!(pending[1].as_ref().unwrap().request, note("good"));
        assert_eq!(inbox.pending().unwrap().len(), 1);
        assert!(bad.with_extension("refused").exists());
    }

    #[test]
    fn what_cannot_be_read_at_this_moment_is_not_set_aside() {
        let (dir, inbox) = inbox();
        // Opened like a file and not read like one, which stands for a disk that fails for a moment: root may read all files.
        let path = dir.path().join(format!("{}.json", Uuid::now_v7()));
        fs::create_dir(&path).unwrap();
        let sent = inbox.send(&note("good")).unwrap();
        for _ in 0..2 {
            let pending = inbox.pending().unwrap();
            assert!(matches!(&pending[0], Err(Error::Io { .. })), "{pending:?}");
            assert_eq!(pending[1].as_ref().unwrap().id, sent, "the others are taken all the same");
        }
        fs::remove_dir(&path).unwrap();
        fs::write(&path, serde_json::to_vec(&note("later")).unwrap()).unwrap();
        assert_eq!(inbox.pending().unwrap()[0].as_ref().unwrap().request, note("later"));
        fs::write(&path, vec![b' '; 2 << 20]).unwrap();
        let error = inbox.pending().unwrap().remove(0).unwrap_err();
        assert!(error.to_string().ends_with("it is too large"), "{error}");
    }

    #[tokio::test]
    async fn a_crash_between_event_and_removal_does_not_count_a_request_twice() {
        let (dir, inbox) = inbox();
        let journal = Journal::create(dir.path(), header(), TickClock::starting_at(0)).unwrap();
        journal.append(vec![declared()]).await.unwrap();
        inbox.send(&note("once")).unwrap();
        for _ in 0..2 {
            for pending in inbox.pending().unwrap() {
                let Pending { id, request } = pending.unwrap();
                if journal.knows(id) {
                    continue;
                }
                let Request::Decide { by, decision } = request else { panic!("another request") };
                journal.append_for(vec![id], vec![EventKind::Decided { by, decision }]).await.unwrap();
            }
        }
        assert_eq!(Reader::open(dir.path()).unwrap().events().unwrap().len(), 2);
    }
}
