//! Finds the programs that come with the Postgres server.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::StepError;

use super::codes;

/// What an installation of the server is known by, and one of its clients alone.
const SERVER: &str = "postgres";
const CLIENT: &str = "pg_dump";

/// The version of a Postgres installation. Data directories fit all minor versions of one major version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// Reads the output of `postgres --version`, such as `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    pub fn parse(output: &str) -> Option<Self> {
        let number = output.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
        let (major, rest) = number
            .split_once(|c: char| !c.is_ascii_digit())
            .map_or((number, ""), |(major, rest)| (major, rest));
        let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some(Self { major: major.parse().ok()?, minor: minor.parse().unwrap_or(0) })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The programs of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tools {
    pub bin_dir: PathBuf,
    pub version: Version,
}

impl Tools {
    /// Finds the programs for a resource: in its `bin_dir`, or else the newest on PATH and in the usual places.
    pub fn find(postgres: &Postgres) -> Result<Self, StepError> {
        let all = Self::candidates(postgres, SERVER);
        all.into_iter().max_by_key(|tools| tools.version).ok_or_else(|| not_found(postgres))
    }

    /// Finds programs that only talk to a server, which may be elsewhere: of its major version, or else newer ones, which speak
    /// to older servers. The server itself need not be installed here.
    pub fn find_clients(postgres: &Postgres, major: u32) -> Result<Self, StepError> {
        let found = Self::of_major(postgres, (CLIENT, major));
        found.or_else(|error| {
            let newest = Self::candidates(postgres, CLIENT).into_iter().max_by_key(|tools| tools.version);
            newest.filter(|tools| tools.version.major > major).ok_or(error)
        })
    }

    /// Finds the programs of one major version.
    pub fn find_major(postgres: &Postgres, major: u32) -> Result<Self, StepError> {
        Self::of_major(postgres, (SERVER, major))
    }

    /// Finds programs that only talk to a server, which may be elsewhere, of its major version.
    pub fn find_clients_major(postgres: &Postgres, major: u32) -> Result<Self, StepError> {
        Self::of_major(postgres, (CLIENT, major))
    }

    fn of_major(postgres: &Postgres, (program, major): (&str, u32)) -> Result<Self, StepError> {
        let all = Self::candidates(postgres, program);
        if all.is_empty() {
            return Err(not_found(postgres));
        }
        let found = all.iter().find(|tools| tools.version.major == major).cloned();
        found.ok_or_else(|| of_another_version(&all, major))
    }

    /// Returns the path of one program, such as `pg_basebackup`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    fn candidates(postgres: &Postgres, program: &str) -> Vec<Self> {
        let places = match &postgres.bin_dir {
            Some(dir) => vec![dir.clone()],
            None => usual_places(program),
        };
        places.into_iter().filter_map(|dir| Self::at(&dir, program)).collect()
    }

    fn at(bin_dir: &Path, program: &str) -> Option<Self> {
        let bin_dir = home_of(bin_dir, program)?;
        let output = Command::new(bin_dir.join(program)).arg("--version").output().ok()?;
        let version = Version::parse(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { bin_dir, version })
    }
}

fn of_another_version(all: &[Tools], major: u32) -> StepError {
    let found: BTreeSet<_> = all.iter().map(|tools| tools.version.major).collect();
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    StepError::permanent(
        codes::LB1246,
        format!("the data needs Postgres {major}; found here: {}", found.join(", ")),
    )
    .help(format!(
        "install it, for example `apt-get install postgresql-{major}`, and point `bin_dir` of the resource \
         at it, for example /usr/lib/postgresql/{major}/bin"
    ))
}

/// Returns the directory in which a program really is. A link to it on PATH need not have links to the other
/// programs beside it.
fn home_of(bin_dir: &Path, program: &str) -> Option<PathBuf> {
    let program = bin_dir.join(program).canonicalize().ok()?;
    program.parent().map(Path::to_path_buf)
}

/// PATH first, then where packages put the server programs, which distributions keep off PATH.
fn usual_places(program: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> =
        std::env::split_paths(&path).filter(|dir| dir.join(program).is_file()).collect();
    for (parent, prefix) in [("/usr/lib/postgresql", ""), ("/usr", "pgsql-"), ("/usr/local", "pgsql")] {
        places.extend(installations(Path::new(parent), (prefix, program)));
    }
    places
}

fn installations(parent: &Path, (prefix, program): (&str, &str)) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join(program).is_file())
        .collect();
    found.sort();
    found
}

fn not_found(postgres: &Postgres) -> StepError {
    let place = match &postgres.bin_dir {
        Some(dir) => format!("in {}", dir.display()),
        None => "on PATH or in /usr/lib/postgresql/*/bin".to_owned(),
    };
    StepError::permanent(codes::LB1245, format!("no Postgres server programs were found {place}"))
        .help("install the server package, for example `apt-get install postgresql`, or set `bin_dir` of the resource")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_the_server_leads_to_the_programs_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let (real, links) = (dir.path().join("real"), dir.path().join("links"));
        std::fs::create_dir(&real).unwrap();
        std::fs::create_dir(&links).unwrap();
        std::fs::write(real.join("postgres"), "").unwrap();
        std::os::unix::fs::symlink(real.join("postgres"), links.join("postgres")).unwrap();
        assert_eq!(home_of(&links, SERVER), Some(real.canonicalize().unwrap()));
    }

    #[test]
    fn clients_are_found_where_no_server_is_installed() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(CLIENT);
        std::fs::write(&program, "#!/bin/sh\necho 'pg_dump (PostgreSQL) 16.4 (Debian 16.4-1)'\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let postgres: Postgres =
            serde_json::from_value(serde_json::json!({ "bin_dir": dir.path() })).unwrap();
        for major in [15, 16] {
            let found = Tools::find_clients(&postgres, major).unwrap();
            assert_eq!(found.version, Version { major: 16, minor: 4 });
        }
        assert_eq!(Tools::find_clients(&postgres, 17).unwrap_err().code, codes::LB1246);
        assert_eq!(Tools::find(&postgres).unwrap_err().code, codes::LB1245, "it has no server");
    }

    #[test]
    fn versions_are_read_from_what_the_program_prints() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(Version::parse(debian), Some(Version { major: 15, minor: 18 }));
        assert_eq!(Version::parse("postgres (PostgreSQL) 18beta1"), Some(Version { major: 18, minor: 0 }));
        assert_eq!(Version::parse("postgres (PostgreSQL) 17"), Some(Version { major: 17, minor: 0 }));
        assert_eq!(Version::parse("nonsense"), None);
    }
}
