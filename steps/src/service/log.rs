//! Where a service writes its log.

use std::path::PathBuf;

use lifeboat_engine::resource::Manager;
use lifeboat_engine::step::StepContext;

use super::unit::default_file;

/// The log of a service, by its manager.
pub(crate) enum Log {
    File(PathBuf),
    /// The journal of a unit.
    Journal(String),
    Container(String),
    Compose {
        service: String,
        dir: Option<PathBuf>,
    },
}

/// Returns where a service writes its log.
pub(crate) fn log_of(ctx: &StepContext, (name, manager): (&str, &Manager)) -> Log {
    match manager {
        Manager::Systemd { unit } => Log::Journal(unit.clone()),
        Manager::Docker { container } => Log::Container(container.clone()),
        Manager::Compose { service, project_dir } => {
            Log::Compose { service: service.clone(), dir: project_dir.clone() }
        }
        Manager::Process { log_file, .. } => {
            Log::File(log_file.clone().unwrap_or_else(|| default_file(ctx, name, "log")))
        }
    }
}
