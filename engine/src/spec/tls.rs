//! The keys under `tls`: what contradicts another key is found before anything is connected to.

use super::environment::is_this_machine;
use super::reader::Reader;
use crate::diagnostic::{Diagnostic, codes};
use crate::expr::names::host_and_port;
use crate::yaml::{Entry, Node};

/// Checks `tls` of a server of a kind, `node`, beside its other keys.
pub(super) fn check_tls(reader: &mut Reader<'_>, kind: &str, node: &Node) {
    let tls = node.entry("tls");
    if kind == "redis" {
        check_scheme(reader, node, tls);
    }
    let Some(tls) = tls.filter(|tls| tls.value.mapping().is_some()) else { return };
    if kind != "redis" {
        check_host(reader, node, tls);
    }
    check_files(reader, &tls.value);
}

fn mode(tls: &Node) -> Option<&str> {
    tls.get("mode").and_then(Node::text)
}

/// Over a Unix socket there is nobody on the way.
fn check_host(reader: &mut Reader<'_>, node: &Node, tls: &Entry) {
    let host = node.get("host").map(|host| host.text().unwrap_or_default());
    if host.is_some_and(|host| !host.starts_with('/')) {
        return;
    }
    reader.push(
        Diagnostic::error(codes::LB0210, "`tls` is for a server that is reached by its `host`")
            .at(reader.source, tls.key.span.clone())
            .help(
                "this one is reached over its Unix socket: remove `tls`, or give the `host` that is in the \
                 server's certificate",
            ),
    );
}

/// The address of a Redis says itself whether TLS is spoken; without it, to another machine only if that is said, too.
fn check_scheme(reader: &mut Reader<'_>, node: &Node, tls: Option<&Entry>) {
    let Some((url, text)) = node.get("url").and_then(|url| Some((url, url.text()?))) else { return };
    let off = tls.map(|tls| mode(&tls.value) == Some("disable"));
    let problem = match (text.starts_with("rediss://"), off) {
        (true, Some(true)) => Diagnostic::error(
            codes::LB0210,
            "an address that begins with `rediss://` is spoken to over TLS, and `mode: disable` forbids it",
        )
        .help("write `redis://` for a connection in the clear, or remove `mode: disable`"),
        (false, Some(false)) => Diagnostic::error(
            codes::LB0210,
            "an address that begins with `redis://` is spoken to in the clear",
        )
        .help("write `rediss://` for TLS; the port is that of `tls-port` in the server's configuration"),
        (false, None) if is_elsewhere(text) => Diagnostic::error(
            codes::LB0211,
            "password and data would go to another machine in the clear",
        )
        .help(
            "write `rediss://` for TLS; where nobody else is on the network between them, say so with \
             `tls: { mode: disable }`",
        ),
        _ => return,
    };
    let problem = problem.at(reader.source, url.span.clone());
    reader.push(match tls {
        Some(tls) => problem.also(tls.key.span.clone(), "settings of TLS"),
        None => problem,
    });
}

/// Says whether an address in the clear names another machine than this one.
fn is_elsewhere(url: &str) -> bool {
    let is_clear = url.starts_with("redis://") && !url.contains('@');
    is_clear && host_and_port(url, 0).0.is_some_and(|host| !is_this_machine(&host))
}

/// Files that nobody would read, and halves of a pair.
fn check_files(reader: &mut Reader<'_>, tls: &Node) {
    for (key, other) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
        if let Some(entry) = tls.entry(key).filter(|_| tls.get(other).is_none()) {
            let message = format!("`{key}` is of no use without `{other}`");
            reader.error(codes::LB0105, message, &entry.key.span);
        }
    }
    let unused: &[&str] = match mode(tls) {
        Some("disable") => &["ca_file", "cert_file", "key_file"],
        Some("require") => &["ca_file"],
        _ => &[],
    };
    for entry in unused.iter().filter_map(|key| tls.entry(key)) {
        let (key, word) = (&entry.key.text, mode(tls).unwrap_or_default());
        reader.push(
            Diagnostic::error(codes::LB0210, format!("`mode: {word}` makes no use of `{key}`"))
                .at(reader.source, entry.key.span.clone())
                .help(if word == "require" {
                    "write `mode: verify-full`, which checks the server's certificate with it"
                } else {
                    "remove it, or write `mode: verify-full`"
                }),
        );
    }
}
