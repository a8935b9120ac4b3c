//! Whether two places are one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use super::claim::{Claim, Endpoint};
use super::network::{Network, Spelled};
use super::place::{self, Place};

/// Says which place two claims share, for people; `None` if they share none.
pub(super) fn shared(mine: &Claim, theirs: &Claim, network: &dyn Network) -> Option<String> {
    match (mine, theirs) {
        (
            Claim::Path { path: mine } | Claim::Cluster { path: mine },
            Claim::Path { path: theirs } | Claim::Cluster { path: theirs },
        ) => shared_path(mine, theirs),
        (Claim::Address { host: mine, port: a }, Claim::Address { host: theirs, port: b }) if a == b => {
            let same = same_host(mine, theirs, network);
            same.then(|| both(&format!("{mine}:{a}"), &format!("{theirs}:{b}"), "the same address"))
        }
        (
            Claim::Bucket { endpoint: ours, bucket: mine, prefix: a },
            Claim::Bucket { endpoint: other, bucket: theirs, prefix: b },
        ) => {
            let same = mine == theirs && (is_below(a, b) || is_below(b, a));
            let same = same && same_endpoint(ours.as_ref(), other.as_ref(), network);
            same.then(|| both(&bucket_url(mine, a), &bucket_url(theirs, b), "in one bucket"))
        }
        (Claim::Name { name: mine }, Claim::Name { name: theirs }) => (mine == theirs).then(|| mine.clone()),
        _ => None,
    }
}

/// Returns the spellings of a place under which runs lock it.
pub(super) fn lock_names(claim: &Claim, network: &dyn Network) -> Vec<String> {
    match claim {
        Claim::Path { path } | Claim::Cluster { path } => vec![place::resolved(path).display().to_string()],
        Claim::Address { host, port } => {
            hosts(host, network).into_iter().map(|host| format!("tcp://{host}:{port}")).collect()
        }
        Claim::Bucket { endpoint: None, bucket, prefix } => vec![bucket_url(bucket, prefix)],
        Claim::Bucket { endpoint: Some(endpoint), bucket, prefix } => {
            let port = endpoint.port.map(|port| format!(":{port}")).unwrap_or_default();
            let url = bucket_url(bucket, prefix);
            hosts(&endpoint.host, network).into_iter().map(|host| format!("{url}{AT}{host}{port}")).collect()
        }
        Claim::Name { name } => vec![name.clone()],
    }
}

/// Stands between a bucket and its server.
const AT: &str = " at ";

/// Returns the name of a host and its addresses; this machine has one name only.
fn hosts(host: &str, network: &dyn Network) -> BTreeSet<String> {
    let host = plain(host);
    let addresses = network.addresses(&host);
    if is_local(&host, network) || addresses.iter().any(|address| network.is_own(*address)) {
        return BTreeSet::from(["localhost".to_owned()]);
    }
    addresses.iter().map(ToString::to_string).chain([host]).collect()
}

/// Says whether two names of places are of one place, or of one within the other.
pub(super) fn names_overlap(mine: &str, theirs: &str) -> bool {
    if mine == theirs {
        return true;
    }
    if mine.starts_with('/') && theirs.starts_with('/') {
        let (mine, theirs) = (Path::new(mine), Path::new(theirs));
        return mine.starts_with(theirs) || theirs.starts_with(mine);
    }
    let bucket = |name: &str| {
        let (url, server) = name.rsplit_once(AT).unwrap_or((name, ""));
        Some((url.strip_prefix("s3://")?.to_owned(), server.to_owned()))
    };
    match (bucket(mine), bucket(theirs)) {
        (Some((mine, here)), Some((theirs, there))) => {
            here == there && (is_below(&mine, &theirs) || is_below(&theirs, &mine))
        }
        _ => false,
    }
}

fn both(mine: &str, theirs: &str, how: &str) -> String {
    if mine == theirs { mine.to_owned() } else { format!("{mine} and {theirs} are {how}") }
}

fn shared_path(mine: &Path, theirs: &Path) -> Option<String> {
    let (a, b) = (Place::find(mine), Place::find(theirs));
    let (known_as, knows) = (place::served_as(mine), place::served_as(theirs));
    let how = if a.overlaps(&b) {
        described(mine, theirs, &a)
    } else if place::control_file(mine).is_some_and(|node| place::control_file(theirs) == Some(node)) {
        format!("{} and {} have one control file", mine.display(), theirs.display())
    } else if known_as.is_some_and(|path| Place::find(&path).overlaps(&b)) {
        format!("`postmaster.pid` in {} belongs to the server on {}", mine.display(), theirs.display())
    } else if knows.is_some_and(|path| Place::find(&path).overlaps(&a)) {
        format!("`postmaster.pid` in {} belongs to the server on {}", theirs.display(), mine.display())
    } else {
        return None;
    };
    let evidence = place::system_identifier(mine).filter(|id| place::system_identifier(theirs) == Some(*id));
    let evidence = evidence.map(|id| format!(" (both have the system identifier {id})"));
    Some(how + &evidence.unwrap_or_default())
}

fn described(mine: &Path, theirs: &Path, found: &Place) -> String {
    if mine == theirs {
        return mine.display().to_string();
    }
    let resolved =
        if found.path == mine { String::new() } else { format!(" (which is {})", found.path.display()) };
    format!("{}{resolved} overlaps with {}", mine.display(), theirs.display())
}

fn bucket_url(bucket: &str, prefix: &str) -> String {
    if prefix.is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") }
}

fn is_below(inner: &str, outer: &str) -> bool {
    outer.is_empty() || inner == outer || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
}

fn same_endpoint(mine: Option<&Endpoint>, theirs: Option<&Endpoint>, network: &dyn Network) -> bool {
    match (mine, theirs) {
        (None, None) => true,
        (Some(mine), Some(theirs)) => {
            mine.port == theirs.port && same_host(&mine.host, &theirs.host, network)
        }
        _ => false,
    }
}

fn same_host(mine: &str, theirs: &str, network: &dyn Network) -> bool {
    let (mine, theirs) = (plain(mine), plain(theirs));
    if mine == theirs {
        return true;
    }
    let (a, b) = (network.addresses(&mine), network.addresses(&theirs));
    let own =
        |host: &str, all: &[IpAddr]| is_local(host, network) || all.iter().any(|one| network.is_own(*one));
    a.iter().any(|one| b.contains(one)) || (own(&mine, &a) && own(&theirs, &b))
}

/// A host without brackets, trailing dot and capital letters.
fn plain(host: &str) -> String {
    host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase()
}

/// Says whether a name or address means this machine without anybody being asked.
fn is_local(host: &str, network: &dyn Network) -> bool {
    let literal = Spelled.addresses(host);
    host.starts_with('/')
        || host == "localhost"
        || host.ends_with(".localhost")
        || host == rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase()
        || literal.iter().any(|address| network.is_own(*address))
}
