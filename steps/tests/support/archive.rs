//! A store and the commands that fill it, for servers that archive.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use lifeboat_engine::resource::{self, System};
use lifeboat_engine::secret::SecretRef;
use lifeboat_steps::store::Store;

use super::postgres::{Cluster, Options, Place};

/// Returns the program that stands for `lifeboat wal`, built from `examples/wal.rs`.
pub fn wal_program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let tests = std::env::current_exe().expect("the test's own path");
        let profile = tests.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
        let program = profile.join("examples/wal");
        if is_current(&program, profile) {
            return program;
        }
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "-q", "-p", "lifeboat-steps", "--example", "wal"]);
        cargo.arg("--target-dir").arg(profile.parent().expect("below the target directory"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs");
        assert!(built.success(), "examples/wal.rs does not build");
        program
    })
}

/// Says whether a program was built after the library. `cargo test` does so before it runs anything, unless a single test was
/// chosen, and building it here could build all dependencies anew, with the features that this crate alone asks for.
fn is_current(program: &Path, profile: &Path) -> bool {
    let built = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let libraries = std::fs::read_dir(profile.join("deps")).into_iter().flatten().flatten().filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("liblifeboat_steps-") && name.ends_with(".rlib")
    });
    let library = libraries.filter_map(|entry| built(&entry.path())).max();
    library.is_some() && built(program) >= library
}

/// A store in a place of its own that a server's user can write, with the program and its configuration.
#[derive(Debug)]
pub struct Archive {
    pub place: Place,
    pub root: PathBuf,
    /// Where it is if it is not the directory `root`.
    bucket: Option<resource::Store>,
}

impl Archive {
    pub fn make() -> Self {
        let place = Place::make();
        let root = place.subdir("store");
        place.subdir("store/wal");
        Self::in_place(place, root, None)
    }

    /// Makes one in a bucket, whose credentials the server's user reads from files.
    pub fn in_bucket(mut bucket: resource::Store) -> Self {
        let place = Place::make();
        let root = place.subdir("store");
        for (key, name) in [(&mut bucket.access_key, "s3_id"), (&mut bucket.secret_key, "s3_key")] {
            let path = place.path().join(name);
            std::fs::write(&path, "testing\n").expect("writes");
            place.own(&path);
            *key = Some(SecretRef::File(path));
        }
        Self::in_place(place, root, Some(bucket))
    }

    fn in_place(place: Place, root: PathBuf, bucket: Option<resource::Store>) -> Self {
        let archive = Self { place, root, bucket };
        // Its own directory may be closed to the server's user.
        std::fs::copy(wal_program(), archive.program()).expect("a copy of the program");
        archive.place.own(&archive.program());
        let config = match &archive.bucket {
            None => serde_json::json!({ "store": archive.url() }),
            Some(bucket) => serde_json::json!({
                "store": bucket.url, "endpoint": bucket.endpoint,
                "access_key": bucket.access_key, "secret_key": bucket.secret_key,
            }),
        };
        std::fs::write(archive.config(), config.to_string()).expect("a configuration");
        archive.place.own(&archive.config());
        archive
    }

    pub fn url(&self) -> String {
        format!("dir://{}", self.root.display())
    }

    pub fn program(&self) -> PathBuf {
        self.place.path().join("lifeboat")
    }

    pub fn config(&self) -> PathBuf {
        self.place.path().join("wal.json")
    }

    pub fn archive_command(&self) -> String {
        format!("{} wal put --config {} %p %f", self.program().display(), self.config().display())
    }

    pub fn store(&self) -> Store {
        Store::open_url(&self.url()).expect("the store opens")
    }

    pub fn system(&self) -> System {
        let dir = || resource::Store { url: self.url(), ..Default::default() };
        System::Store(self.bucket.clone().unwrap_or_else(dir))
    }

    /// Returns the references to the credentials of a bucket.
    pub fn secrets(&self) -> Vec<SecretRef> {
        let bucket = self.bucket.iter();
        bucket.flat_map(|bucket| [&bucket.access_key, &bucket.secret_key]).flatten().cloned().collect()
    }

    /// Starts a cluster that archives here.
    pub fn cluster(&self, mut options: Options) -> Cluster {
        options.settings.extend(archiving_by(&self.archive_command()));
        Cluster::start(&options)
    }
}

/// Returns the settings of a server that archives with a command.
pub fn archiving_by(command: &str) -> Vec<String> {
    vec!["archive_mode = on".to_owned(), format!("archive_command = '{}'", command.replace('\'', "''"))]
}
