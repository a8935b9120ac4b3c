//! A project whose runbooks use every feature, and whose steps leave a trace that only grows.

use crate::project::Project;

/// Which end the run is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scene {
    /// Everything goes on to the end, with the help of people.
    Success,
    /// A step fails in the middle: what has begun is undone, and `always` follows.
    Undone,
    /// A drill that makes a server, asks nobody, and removes what it made.
    Drill,
}

impl Scene {
    pub(super) const ALL: [Self; 3] = [Self::Success, Self::Undone, Self::Drill];

    /// The command that begins the run.
    pub(super) fn begin(self) -> &'static [&'static str] {
        match self {
            Self::Success => &["run", "job", "--no-wait"],
            Self::Undone => &["run", "job", "--no-wait", "-i", "word=break"],
            Self::Drill => &["drill", "rehearse", "--no-wait"],
        }
    }
}

/// Appends the key and the attempt to `effects`. One short write to a file that is open for appending is whole or absent.
/// No sync: a killed process takes nothing with it that it has written.
const FX: &str = "\
printf '%s %s\\n' \"$LIFEBOAT_IDEMPOTENCY_KEY\" \"$LIFEBOAT_ATTEMPT\" >> effects
how_often() { grep -cF -- \"$LIFEBOAT_IDEMPOTENCY_KEY \" effects; }
";

const JOB: &str = "
- { id: first, effect: idempotent, run: '. ./fx; echo {{ inputs.word }}', milestone: { name: begun, at: started }, undo: . ./fx }
- group: work
  parallel: true
  max_parallel: 3
  budget: 1h
  steps:
    - group: chain
      milestone: chained
      steps:
        - id: guarded
          effect: guarded
          probe: test -e mark
          run: . ./fx; touch mark
          undo: . ./fx
        - id: flaky
          effect: idempotent
          retry: { attempts: 4, delay: 10ms, backoff: exponential, max_delay: 40ms, jitter: true }
          run: . ./fx; test $(how_often) -ge 3
          undo: { run: '. ./fx; test $(how_often) -ge 2', retry: { attempts: 3, delay: 5ms } }
    - id: each
      for_each: \"{{ range(4) | list }}\"
      max_parallel: 2
      effect: idempotent
      title: Element {{ item }}
      run: . ./fx; echo {{ item * 10 }}
      undo: . ./fx
    - { id: poll, effect: read, run: '. ./fx; how_often', until: output.stdout | int >= 3, every: 5ms, timeout: 1m }
    - { id: call, runbook: child, with: { text: '{{ steps.first.stdout }}-a' } }
- { id: sum, uses: assert, with: { values: { all: \"{{ steps.each | map(attribute='stdout') | map('int') | sum }}\" }, that: [values.all == 60] } }
- { id: tolerated, effect: idempotent, on_error: continue, run: . ./fx; exit 1 }
- { id: broken, effect: idempotent, run: . ./fx; exit 1 }
- { id: mend, needs: [{ step: broken, on: failure }], effect: idempotent, run: . ./fx }
- { id: left_out, needs: [mend], if: inputs.word == 'no such word', effect: idempotent, run: . ./fx }
- { id: breaks, effect: idempotent, on_error: abort, run: '. ./fx; test {{ inputs.word }} != break', undo: 'exit 3' }
- group: people
  parallel: true
  steps:
    - { id: once, effect: once, run: '. ./fx; test -e mended' }
    - { id: hopeless, effect: idempotent, run: . ./fx; exit 1 }
    - { id: by_hand, effect: idempotent, run: . ./fx; exit 1 }
    - { id: sign, uses: approval, with: { role: lead, message: 'Go on with {{ steps.call.said }}?' } }
    - { id: amount, uses: ask, with: { message: How many?, type: integer } }
    - { id: hands, manual: { role: lead, text: Tell them., checklist: [They know] } }
- { id: say, uses: note, with: { text: 'Asked for {{ steps.amount.value }}.' } }
- id: last
  effect: idempotent
  recovered: true
  milestone: { name: served }
  env: { TOKEN: { secret: token }, SEEN: '{{ steps.call.said }}', MORE: '{{ steps.amount.value + 1 }}' }
  run: . ./fx; echo \"$SEEN $MORE ${#TOKEN}\"";

const CHILD: &str = "
- { id: say, effect: idempotent, run: '. ./fx; echo {{ inputs.text }}', undo: . ./fx }
- { id: again, effect: idempotent, run: '. ./fx; echo {{ steps.say.stdout }} twice' }";

const REHEARSE: &str = "
- { id: serve, uses: service.start, with: { service: server } }
- { id: look, effect: idempotent, run: . ./fx; echo seen }
- { id: sign, uses: approval, with: { message: Go on? } }
- { id: after, effect: idempotent, run: . ./fx }";

/// The project, before any run.
pub(super) fn project() -> Project {
    let project = Project::empty();
    project.write("lifeboat.yaml", "project: test\ndrill: { approvals: auto }\n");
    project.write("token", "a-secret-of-many-letters");
    project.write("fx", FX);
    project.write(
        "environments/sandbox.yaml",
        "environment: sandbox\n\
         resources:\n  server: { kind: service, manager: process, command: [sleep, '600'] }\n\
         secrets: { token: { file: ../token } }\n",
    );
    let always = "always:\n  - { id: tell, effect: idempotent, run: '. ./fx; echo {{ run.summary }}' }\n\
                  \x20 - { id: tidy, effect: idempotent, run: . ./fx }\n";
    let head = format!(
        "objective: {{ rto: 4h }}\nroles: {{ lead: Decides }}\nlock: everything\n\
         milestones: {{ begun: 1h, chained: 2h, served: 3h }}\ninputs: {{ word: {{ type: string, default: hello }} }}\n{always}"
    );
    project.runbook("job", &head, JOB);
    project.runbook(
        "child",
        "inputs: { text: { type: string } }\noutputs: { said: '{{ steps.again.stdout }}' }\n\
         always:\n  - { id: conclude, effect: idempotent, run: . ./fx }\n",
        CHILD,
    );
    project.runbook("rehearse", always, REHEARSE);
    project
}
