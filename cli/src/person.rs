//! Who is acting: a claim, shown beside the user id that it came from.

use std::env;
use std::fs;

use lifeboat_engine::model::event::Person;

/// Returns the name given with `--as`, else the login behind `sudo`, else the name of the user id.
pub(crate) fn acting(given: Option<&str>) -> Person {
    let uid = rustix::process::getuid().as_raw();
    let name = given
        .map(ToOwned::to_owned)
        .or_else(|| env::var("SUDO_USER").ok().filter(|name| !name.is_empty()))
        .or_else(|| name_of(uid))
        .unwrap_or_else(|| format!("uid {uid}"));
    Person { name, uid }
}

fn name_of(uid: u32) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    })
}
