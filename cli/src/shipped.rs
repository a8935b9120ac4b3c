//! The runbooks that come with the program, from `runbooks/` of the repository.

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../runbooks/", $name, ".yaml")))),*]
    };
}

/// Each runbook's name, without `builtin/`, and its text.
pub(crate) const FILES: &[(&str, &str)] = shipped![
    "backup-files",
    "backup-mariadb",
    "backup-postgres",
    "backup-redis",
    "drill-mariadb",
    "drill-postgres",
    "restore-files",
    "restore-mariadb",
    "restore-postgres",
    "restore-redis",
];
