//! A world whose backups are in a bucket, behind a proxy that can hold requests back: so a test knows how far a run is.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use lifeboat_engine::resource;
use lifeboat_steps::store::{Address, Key, Store};

use super::machine::{Process, Tree};
use super::world::World;
use crate::moto;
use crate::project::Running;
use crate::proxy::{Fault, Proxy, eventually};

/// Only the database, step by step; what fails waits for somebody.
pub(crate) const POSTGRES: &str = r#"runbook: restore
title: Restore the database
environments: [sandbox]
objective: { rto: 48h, rpo: 1h }
inputs:
  target_time: { type: timestamp, default: "{{ incident.started_at }}", description: Just before this moment }
steps:
  - id: choose
    uses: postgres.select_backup
    with: { store: backups, target_time: "{{ inputs.target_time }}" }
    on_error: hold
  - id: base
    uses: postgres.restore_base
    with: { store: backups, backup: "{{ steps.choose.backup }}", cluster: db }
    on_error: hold
  - id: recover
    uses: postgres.recover
    with: { store: backups, cluster: db, target_time: "{{ inputs.target_time }}" }
    on_error: hold
  - id: verify
    uses: postgres.verify
    with:
      cluster: db
      queries:
        - name: waits for the test
          database: members
          sql: >-
            with recursive wait as (select 0 as n union all select n + 1 from wait, pg_sleep(0.02)
            where (pg_stat_file('DIR/go', true)).size is null) select count(*) as n from wait
          expect: ["rows[0].n > 0"]
    on_error: hold
  - { id: promote, uses: postgres.promote, with: { cluster: db }, on_error: hold }
  - id: look
    effect: read
    recovered: true
    env: { DATABASE_URL: { connection: db, database: members } }
    run: |
      rm -rf found
      mkdir found
      {{ vars.psql }} -XAtc 'select id from payments order by id' "$DATABASE_URL" >found/payments
      {{ vars.psql }} -XAtc 'select count(*) from heartbeat' "$DATABASE_URL" >found/heartbeat
"#;

/// Everything in the bucket: content, and when it was last written.
type Objects = BTreeMap<String, (Option<jiff::Timestamp>, Vec<u8>)>;

pub(crate) struct Remote {
    pub(crate) world: World,
    pub(crate) proxy: Proxy,
    store: Store,
    sandbox: Tree,
    objects: Objects,
}

impl Remote {
    /// Makes one with the runbook that restores everything.
    pub(crate) fn whole() -> Self {
        let world = World::new();
        let proxy = Proxy::before(moto::endpoint());
        let store = fill(&world);
        let written = format!(
            "url: 's3://{}', endpoint: '{}', access_key: {{ file: {root}/s3 }}, secret_key: {{ file: {root}/s3 }}",
            place(&store),
            proxy.endpoint,
            root = world.dir.display()
        );
        world.write("s3", "testing");
        let dir = format!("url: 'dir://{}/store'", world.dir.display());
        world.edit("project/environments/sandbox.yaml", &dir, &written);
        // Nothing may come from there.
        fs::remove_dir_all(world.file("store")).expect("removes");
        let sandbox = Tree::of(&world.file("sandbox"));
        let objects = objects(&store);
        Self { world, proxy, store, sandbox, objects }
    }

    /// Makes one with the runbook that restores the database. `verify` passes at once.
    pub(crate) fn postgres() -> Self {
        let remote = Self::whole();
        let dir = remote.world.dir.display().to_string();
        remote.world.write("project/runbooks/restore.yaml", &POSTGRES.replace("DIR", &dir));
        remote.let_verify();
        remote
    }

    pub(crate) fn let_verify(&self) {
        self.world.write("go", "");
    }

    pub(crate) fn stop_verify(&self) {
        fs::remove_file(self.world.file("go")).expect("removes");
    }

    /// Holds requests whose first line has a text in it.
    pub(crate) fn hold(&self, text: &str) {
        self.proxy.on(text, Fault::Hold);
    }

    pub(crate) fn until_held(&self, running: &mut Running) {
        eventually("a request is held", || !self.proxy.hit().is_empty() || running.has_ended());
        assert!(!running.has_ended(), "ended before it asked: {:#?}", self.proxy.seen());
    }

    /// The one process of this world of that name which has all these words on its command line.
    pub(crate) fn process(&self, name: &str, word: &str) -> Option<Process> {
        let all = self.world.processes();
        let is_it = |process: &&Process| process.name == name && process.command.contains(word);
        // A server's children have its name.
        let mut found = all
            .iter()
            .filter(is_it)
            .filter(|it| !all.iter().any(|of| of.pid == it.parent && of.name == name));
        found.next().cloned()
    }

    /// Asserts that nothing is left of the drills, and that nobody wrote to the bucket.
    pub(crate) fn assert_as_before(&self) {
        self.world.assert_nothing_runs();
        self.sandbox.assert_unchanged(&self.world.file("sandbox"));
        self.assert_bucket_unchanged();
    }

    pub(crate) fn assert_bucket_unchanged(&self) {
        assert!(objects(&self.store) == self.objects, "the bucket is not as it was");
        let seen = self.proxy.seen();
        let written: Vec<_> =
            seen.iter().filter(|line| !line.starts_with("GET ") && !line.starts_with("HEAD ")).collect();
        assert!(written.is_empty(), "{written:#?}");
        assert!(seen.iter().any(|line| line.contains("/base.tar")), "it was read: {seen:#?}");
    }
}

/// Makes a bucket with what is in the world's store.
fn fill(world: &World) -> Store {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("whole-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    make_bucket(&name);
    let resource = resource::Store {
        url: format!("s3://{name}/team"),
        endpoint: Some(moto::endpoint().to_owned()),
        ..resource::Store::default()
    };
    let address = Address::new(resource).with_keys("testing".into(), "testing".into(), None);
    let store = Store::open(&address).expect("the bucket answers");
    put(&store, &world.file("store"), "");
    store
}

fn put(store: &Store, dir: &Path, prefix: &str) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let key = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            put(store, &entry.path(), &format!("{key}/"));
        } else {
            let content = fs::read(entry.path()).expect("reads");
            store.put(&Key::new(key).expect("a key"), &content).expect("writes");
        }
    }
}

/// The store's own client makes no buckets.
fn make_bucket(name: &str) {
    let server = moto::endpoint().trim_start_matches("http://");
    let mut stream = TcpStream::connect(server).expect("the server listens");
    let request =
        format!("PUT /{name} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

fn place(store: &Store) -> String {
    // `the store s3://bucket/prefix`
    store.to_string().split_once("s3://").expect("in a bucket").1.to_owned()
}

fn objects(store: &Store) -> Objects {
    let prefixes = ["base", "wal", "redis", "files", "dump"];
    let listed = prefixes.iter().flat_map(|it| store.list(&Key::new(*it).expect("a key")).expect("lists"));
    let object = |key: Key| {
        let (mut content, modified) =
            (Vec::new(), store.metadata(&key).expect("answers").expect("is there").modified);
        store.read(&key).expect("opens").read_to_end(&mut content).expect("reads");
        (key.to_string(), (modified, content))
    };
    listed.map(|listed| object(listed.key)).collect()
}
