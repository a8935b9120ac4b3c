//! Who is acting: a claim, shown beside the user id that it came from.

use std::env;
use std::fs;

use lifeboat_engine::diagnostic::nearest_help;
use lifeboat_engine::model::event::Person;
use lifeboat_engine::spec::ProjectSpec;

use crate::exit::Failure;

/// Returns the name given with `--as`, else the login behind `sudo`, else the name of the user id; as `people` of the
/// project has it, if it does.
///
/// A name that somebody types must be among `people`, if there are any: it is a slip otherwise. A login need not be, for
/// whoever is at the machine at 3 am must be able to act.
pub(crate) fn acting(given: Option<&str>, project: &ProjectSpec) -> Result<Person, Failure> {
    let uid = rustix::process::getuid().as_raw();
    if let Some(given) = given {
        let known = project.people.iter().find(|(login, person)| {
            login.as_str() == given
                || person.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(given))
        });
        return match known {
            Some((login, _)) => Ok(Person { name: project.called(login), uid }),
            None if project.people.is_empty() => Ok(Person { name: given.to_owned(), uid }),
            None => {
                let people = project.people.keys().map(String::as_str);
                let help = nearest_help(given, "people", people).unwrap_or_default();
                Err(Failure::usage(format!("`{given}` is not among `people` of lifeboat.yaml")).help(help))
            }
        };
    }
    let login = env::var("SUDO_USER").ok().filter(|name| !name.is_empty()).or_else(|| name_of(uid));
    let name = login.map_or_else(|| format!("uid {uid}"), |login| project.called(&login));
    Ok(Person { name, uid })
}

/// Returns the login name of a user of the system.
pub(crate) fn name_of(uid: u32) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    })
}
