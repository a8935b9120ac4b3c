//! What editors say about each key of the language.

/// Shows how a key that must be there is written; `None` if that depends on where it stands.
pub(in crate::spec) fn example(key: &str) -> Option<&'static str> {
    Some(match key {
        "runbook" => "runbook: restore",
        "environment" => "environment: staging",
        "project" => "project: shop",
        "environments" => "environments: [staging]",
        "steps" => "steps:` with a list under it, each element a step or a group: `- id: look",
        "id" => "id: restore_base",
        "values" => "values: [full, quick]",
        "kind" => "kind: postgres",
        "step" => "step: restore_base",
        "name" => "name: database_up",
        _ => return None,
    })
}

/// Returns one sentence about a key of a runbook, a group or a step; `None` for a key that nobody has described.
pub(super) fn of_runbook(key: &str) -> Option<&'static str> {
    Some(match key {
        "runbook" => "The name: typed in commands, part of file names",
        "title" => "What people read in lists and reports",
        "description" => "When to use it and what to know before, for somebody who has not written it",
        "owner" => "Who keeps it right",
        "environments" => "Where it may run: it is checked against each of them",
        "objective" => "How long recovery may take (`rto`) and how much may be lost (`rpo`)",
        "roles" => "Who is asked, and for what",
        "milestones" => "Deadlines by name, counted from the incident",
        "inputs" => "What whoever starts it may or must give",
        "outputs" => "What a runbook that calls this one can see of it",
        "lock" => "What no other run may touch meanwhile",
        "steps" => "Steps and groups, in order",
        "always" => "Steps that run at the end of the run, however it ended",
        _ => return None,
    })
}

/// Returns one sentence about a key of a step or a group.
pub(super) fn of_step(key: &str) -> Option<&'static str> {
    Some(match key {
        "id" => "The step's name: a lower-case letter, then lower-case letters, digits and `_`",
        "group" => "The group's name: a lower-case letter, then lower-case letters, digits and `_`",
        "title" => "What people read while it runs and in the report",
        "needs" => "What must have ended first, instead of the step above; `[]` starts at once",
        "if" => "A bare expression; the step is skipped if it is false",
        "env" => "Variables for the program: text, `{ secret: NAME }` or `{ connection: RESOURCE }`",
        "dir" => "Where the script runs; the project's directory if absent",
        "host" => "The host to run on; only `local: true` ones can be used",
        "effect" => "What running it twice means",
        "probe" => "For `effect: guarded`: exits with 0 if the work is done, with 1 if it is not",
        "expect" => "Bare expressions over `output` that must hold afterwards",
        "retry" => "Attempts after a failure that is known to be temporary",
        "timeout" => "Ends an attempt that takes longer",
        "budget" => "What it is meant to take: shown and judged, never enforced",
        "milestone" => "The milestone that its start or success marks",
        "recovered" => "The recovery clock stops when the last step with this has succeeded",
        "on_error" => "When attempts are used up: hold for a person, abort the run, or continue",
        "undo" => "What takes the step's work back when the run is aborted",
        "for_each" => {
            "A list, or a template that gives one; the step runs once for each element, named `item`, number `index`"
        }
        "until" => {
            "A bare expression over `output`; one attempt repeats the step until it holds or `timeout` has passed"
        }
        "every" => "The wait before `until` repeats the step",
        "uses" => "The kind of step; `lifeboat steps` lists all",
        "with" => "The parameters of `uses`, or the inputs of `runbook`",
        "run" => "A bash script; needs an `effect`",
        "runbook" => "Another runbook of the project, run in the same environment",
        "manual" => "Instructions for a person, who answers that it is done",
        "parallel" => "Whether the children start together; they run in order otherwise",
        "max_parallel" => {
            "How many run at a time at most; elements of `for_each` run one after the other without it"
        }
        "steps" => "The children",
        _ => return None,
    })
}

/// Returns one sentence about a key of an environment.
pub(super) fn of_environment(key: &str) -> Option<&'static str> {
    Some(match key {
        "environment" => "The name: typed as `--env NAME`",
        "title" => "What people read",
        "description" => "What it is for",
        "protected" => "Whether drills are refused here and destroying must be confirmed",
        "drill" => "How drills behave here",
        "resources" => "The systems, by the name that runbooks use",
        "secrets" => "References to secrets, by the name that runbooks use; never the secrets themselves",
        "vars" => "Values that differ between environments: `vars.NAME` in runbooks",
        _ => return None,
    })
}

/// Returns one sentence about a key of `lifeboat.yaml`.
pub(super) fn of_project(key: &str) -> Option<&'static str> {
    Some(match key {
        "project" => "The name of the project",
        "title" => "What people read",
        "state" => "Where runs are kept; it must survive the disaster",
        "people" => "Who may act, by login name, with their roles",
        "roles" => "Who holds each role",
        "drill" => "How drills behave in unprotected environments",
        "notices" => "Which channel takes which notice",
        "drills" => "When to drill what",
        "schedules" => "What runs when",
        _ => return None,
    })
}

/// Returns one sentence about a key of the drill calendar or of a schedule.
pub(super) fn of_calendar(key: &str) -> Option<&'static str> {
    Some(match key {
        "runbook" => "The runbook",
        "drill" => "A runbook that is started as a drill",
        "environment" => "Where it runs",
        "every" => "How much time may pass from one to the next",
        "at" => "The time of day, by the clock of the machine: \"02:30\"",
        "inputs" => "Its inputs, where they have no default",
        _ => return None,
    })
}

/// Returns one sentence about a key of an input.
pub(super) fn of_input(key: &str) -> Option<&'static str> {
    Some(match key {
        "type" => "What values it takes; `string` if absent",
        "description" => "What to give, for whoever is asked for it",
        "default" => "What holds if it is not given; an input without one must be given",
        "pattern" => "string: the regular expression that the whole text matches",
        "values" => "enum: the words it takes",
        "of" => "list, map: what the elements are",
        "kind" => "resource: the kind of resource it names",
        _ => return None,
    })
}
